//! `tracer attach`: the main job.

use anyhow::{Context as _, anyhow};

use super::{Status, Stop, attach_described, engine_options, output_options, say, status_of};
use crate::{
    cli::{
        AttachArgs,
        values::{Capture, Switch, Target as Named, Where},
    },
    engine::Engine,
    host,
    nginx::find::Target,
    outputs::{Outputs, Pace},
    pipeline::{ANSWERING, Limits, Pipeline, run as run_pipeline},
    privilege,
    session::Origin,
    sink::trace_file::Target as TraceTarget,
    source::{
        live::{Live, LiveOptions, Source},
        recording::{ClockReading, Header, RecordingWriter},
    },
};

/// Runs the command. `verbose`: how often `-v` was given.
///
/// # Errors
/// See [`Stop`]; nothing that was written is lost.
pub fn run(args: &AttachArgs, verbose: u8) -> Result<Status, Stop> {
    let options = output_options(&args.output, Pace::Live)?;

    if let Some(path) = &args.record
        && args
            .output
            .output
            .iter()
            .any(|output| output.0 == TraceTarget::File(path.clone()))
    {
        return Err(Stop::usage(format!(
            "{}: a trace and a recording need a file each",
            path.display()
        )));
    }
    for named in [&args.config, &args.error_log] {
        readable(named)?;
    }
    for lost in privilege::check().map_err(Stop::NotAttached)? {
        log::warn!("{lost}");
    }
    let target = target(&args.pid);
    let live = Live::start(LiveOptions {
        target: target.clone(),
        config: source(&args.config),
        error_log: source(&args.error_log),
        without: args.without.iter().cloned().collect(),
        resolve: args.resolve == Switch::Auto,
        capture: args.capture == Capture::RequestLine,
        verbose: verbose > 1,
    });
    let mut live = match live {
        Ok(live) => live,
        Err(error) if error.is::<crate::kernel::UnknownHook>() => return Err(Stop::Usage(error)),
        Err(error) => return Err(Stop::NotAttached(error)),
    };
    // Files are opened with all that may be missing of them said before anything is dropped.
    let outputs = Outputs::open(options, Origin::here(), attach_described(args)).map_err(Stop::Usage)?;
    let recorder = match &args.record {
        Some(path) => {
            let (at, unix_ns) = host::clock();
            let command = std::env::args().collect::<Vec<_>>().join(" ");
            let header = Header::new(command, ClockReading { at, unix_ns });
            Some(RecordingWriter::create(path, &header).map_err(Stop::Usage)?)
        }
        None => None,
    };
    if !live.is_following() {
        say(&format!("no {} runs yet: waiting for one", args.pid));
    }
    // Parts of a rotated trace are made later, maybe in a folder of somebody else's.
    let also: &[privilege::Capability] = if args.output.rotate.is_some() {
        &[privilege::Capability::CAP_DAC_OVERRIDE]
    } else {
        &[]
    };
    if let Err(error) = privilege::keep_only_needed(also) {
        log::warn!("keeping more privileges than needed: {error:#}");
    }
    let pipeline = Pipeline::new(Engine::new(engine_options(&args.output)), outputs, recorder);
    let limits = Limits {
        duration: args.duration,
        count: args.count,
    };
    let ready_file = args.ready_file.clone();
    let mut is_ready_file_bad = false;
    let ready = || {
        if let Some(path) = &ready_file {
            std::fs::write(path, format!("{}\n", std::process::id()))
                .with_context(|| format!("{}: cannot create the ready file", path.display()))
                .inspect_err(|_| is_ready_file_bad = true)?;
        }
        notify_ready();
        Ok(())
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(ANSWERING)
        .build()
        .map_err(|error| Stop::NotAttached(anyhow!(error).context("starting the runtime")))?;
    let closed = runtime.block_on(async {
        if verbose > 1 {
            pass_on_log(&mut live);
        }
        run_pipeline(live, pipeline, limits, ready).await
    });
    // Answers that are still on their way are nobody's any more.
    runtime.shutdown_background();
    let closed = closed.map_err(|error| {
        if is_ready_file_bad {
            Stop::Usage(error)
        } else {
            Stop::NotAttached(error)
        }
    })?;
    status_of(&closed, args.output.fail_on_failure)
}

/// What the BPF programs say of themselves joins the tracer's own diagnostics.
fn pass_on_log(live: &mut Live) {
    match live.kernel_mut().take_log() {
        Ok(mut logger) => {
            tokio::spawn(async move {
                let mut every = tokio::time::interval(std::time::Duration::from_millis(100));
                loop {
                    every.tick().await;
                    logger.flush();
                }
            });
        }
        Err(error) => log::warn!("{error:#}"),
    }
}

/// Tells a service manager that everything is attached (`sd_notify`); without one it does nothing.
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else {
        return;
    };
    let text = path.to_string_lossy().into_owned();
    let sent = match text.strip_prefix('@') {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            std::os::unix::net::SocketAddr::from_abstract_name(name)
                .and_then(|address| socket.send_to_addr(b"READY=1", &address))
        }
        None => socket.send_to(b"READY=1", &path),
    };
    if let Err(error) = sent {
        log::warn!("cannot tell the service manager at {text}: {error}");
    }
}

/// What `--pid` means.
#[must_use]
pub fn target(named: &Named) -> Target {
    match named {
        Named::Name(name) => Target::Name(name.clone()),
        Named::Pid(pid) => Target::Pid(*pid),
    }
}

/// A file that the user named must be there: to go on without it is not what was asked for.
fn readable(given: &Where) -> Result<(), Stop> {
    let Where::Path(path) = given else {
        return Ok(());
    };
    let is_file = std::fs::File::open(path).and_then(|file| file.metadata().map(|found| !found.is_dir()));
    let why = match is_file {
        Ok(true) => return Ok(()),
        Ok(false) => "is a directory".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Stop::usage(format!("{}: cannot be read: {why}", path.display())))
}

fn source(given: &Where) -> Source {
    match given {
        Where::Auto => Source::Auto,
        Where::Off => Source::Off,
        Where::Path(path) => Source::Path(path.clone()),
    }
}
