//! `tracer replay`: a recording through today's engine to the same outputs as `attach`.

use serde_json::json;

use super::{Status, Stop, described, engine_options, output_options, status_of};
use crate::{
    cli::ReplayArgs,
    engine::Engine,
    event::{Input, Ktime},
    lines::read::Unreadable,
    outputs::{Outputs, Pace},
    session::{Origin, TOOL},
    source::recording::RecordingReader,
};

/// Runs the command.
pub fn run(args: &ReplayArgs) -> Result<Status, Stop> {
    let options = output_options(&args.output, Pace::Replay)?;
    let mut recording = RecordingReader::open(&args.recording)?;
    let header = recording.header().clone();
    let mut settings = described(&args.output);
    settings.insert("replay".to_owned(), json!(true));
    settings.insert("recorded_by".to_owned(), json!(header.origin.tool));
    // The host is the recorded one, the diagnosis is this program's.
    let origin = Origin {
        tool: TOOL.to_owned(),
        ..header.origin
    };
    let mut outputs = Outputs::open(options, origin, settings).map_err(Stop::Usage)?;
    outputs.observe(
        header.clock.at,
        &Input::Clock {
            unix_ns: header.clock.unix_ns,
        },
    );
    let mut engine = Engine::new(engine_options(&args.output));
    let end = feed(&mut recording, &mut engine, &mut outputs);
    if let Ok(End::Cut(at)) | Err((at, _)) = &end {
        outputs.mark_cut();
        take_in(&mut engine, &mut outputs, *at, Input::Detach { in_flight: 0 });
    }
    if let Some(torn) = recording.torn() {
        log::warn!("{torn}");
    }
    let closed = outputs.close();
    match end {
        Ok(End::Orderly | End::Cut(_)) => status_of(&closed, args.output.fail_on_failure),
        Err((_, error)) => Err(error.into()),
    }
}

/// How a recording ended.
enum End {
    /// With the detach of the tracer that recorded it.
    Orderly,
    /// Without, at this time.
    Cut(Ktime),
}

/// Feeds the recording to the engine; an error comes with the time reached before it.
fn feed(
    recording: &mut RecordingReader,
    engine: &mut Engine,
    outputs: &mut Outputs,
) -> Result<End, (Ktime, Unreadable)> {
    let mut now = recording.header().clock.at;
    while let Some(stamped) = recording.next_input().map_err(|error| (now, error))? {
        now = now.max(stamped.at);
        let is_end = matches!(stamped.input, Input::Detach { .. });
        take_in(engine, outputs, stamped.at, stamped.input);
        if is_end {
            return Ok(End::Orderly);
        }
        if outputs.is_deaf() {
            break;
        }
    }
    Ok(End::Cut(now))
}

fn take_in(engine: &mut Engine, outputs: &mut Outputs, at: Ktime, input: Input) {
    outputs.observe(at, &input);
    for output in engine.apply(at, input) {
        outputs.take(output);
    }
    outputs.settle();
}
