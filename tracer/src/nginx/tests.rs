//! A real nginx, looked at from outside: found, its configuration read, its log followed.
//!
//! Each test starts its own, on unix sockets in a directory of its own, and leaves nothing behind.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid as UnixPid, Uid, mkfifo},
};

use super::{
    config::{self, Options},
    error_log::{self, Context, Zone},
    find::{FindError, Found, Process, Role, Target, find, installed},
    tail::Tail,
};

use crate::{
    event::{Config, Errno, LogLine, Netns, Peer, Pid},
    host::process::processor_time,
    trials::eventually,
};

const NGINX: &str = "/usr/sbin/nginx";

/// Why such a test cannot run here.
fn obstacle() -> Option<&'static str> {
    if !Path::new(NGINX).exists() {
        return Some("no /usr/sbin/nginx");
    }
    (!Uid::effective().is_root()).then_some("not root")
}

macro_rules! needs_nginx {
    () => {
        if let Some(obstacle) = obstacle() {
            println!("skipped: {obstacle}");
            return;
        }
    };
}

/// An nginx with a directory of its own; `@` in its configuration stands for that directory.
struct Throwaway {
    directory: tempfile::TempDir,
    child: Child,
    /// Another process than the child when it put itself into the background.
    pid: Pid,
}

const HEAD: &str = "user root; daemon off; worker_processes 2; pid @/nginx.pid; error_log @/error.log;
    events { worker_connections 64; }\n";
const HTTP: &str = "access_log off; client_body_temp_path @/t1; proxy_temp_path @/t2; fastcgi_temp_path @/t3;
    uwsgi_temp_path @/t4; scgi_temp_path @/t5;\n";

fn full(head: &str, http: &str) -> String {
    format!("{head} http {{ {HTTP} {http} }}")
}

impl Throwaway {
    fn start(conf: &str) -> Self {
        Self::start_as(conf, |directory| {
            let mut command = Command::new(NGINX);
            command
                .arg("-p")
                .arg(directory)
                .arg("-c")
                .arg(directory.join("nginx.conf"));
            command
        })
    }

    /// Waits until it listens on `front.sock`, which every configuration here does.
    fn start_as(conf: &str, command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().to_owned();
        fs::write(
            path.join("nginx.conf"),
            conf.replace('@', &path.to_string_lossy()),
        )
        .expect("a file");
        let mut child = command(&path)
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        let front = path.join("front.sock");
        eventually("nginx listens", || UnixStream::connect(&front).ok());
        let pid = match conf.contains("daemon off;") {
            true => Pid(child.id()),
            false => {
                // While the one that started it lives, nginx takes no signal for an upgrade.
                child.wait().expect("it goes into the background");
                eventually("its pid file", || {
                    let text = fs::read_to_string(path.join("nginx.pid")).ok()?;
                    text.trim().parse().ok().map(Pid)
                })
            }
        };
        Self {
            directory,
            child,
            pid,
        }
    }

    fn pid(&self) -> Pid {
        self.pid
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    fn found(&self) -> Found {
        found(self.pid())
    }

    /// Waits for its workers, which are forked after the sockets listen.
    fn with_workers(&self, count: usize) -> Found {
        eventually("the workers", || {
            Some(self.found()).filter(|found| found.instance.workers.len() == count)
        })
    }

    /// One request, to the end of its answer.
    fn get(&self, uri: &str) -> String {
        let mut stream = UnixStream::connect(self.path("front.sock")).expect("nginx listens");
        write!(
            stream,
            "GET {uri} HTTP/1.1\r\nHost: h.example\r\nReferer: http://r/?secret\r\nConnection: close\r\n\r\n"
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        let _ = kill(UnixPid::from_raw(self.pid.0.cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Path::new(&format!("/proc/{}", self.pid)).exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn send(pid: Pid, signal: Signal) {
    kill(UnixPid::from_raw(pid.0.cast_signed()), signal).expect("the process lives");
}

fn found(pid: Pid) -> Found {
    match find(&Target::Pid(pid)) {
        Ok(found) => found.into_iter().next().expect("exactly one"),
        Err(error) => panic!("{error}"),
    }
}

fn roles(found: &Found) -> Vec<Role> {
    let mut roles: Vec<Role> = found.processes.iter().map(|process| process.role).collect();
    roles.sort();
    roles
}

fn plain() -> String {
    full(
        HEAD,
        "server { listen unix:@/front.sock; location / { return 200 ok; } }",
    )
}

#[test]
fn executables_are_found_before_they_run() {
    needs_nginx!();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let angie = folder.path().join("angie");
    fs::copy(NGINX, &angie).expect("a copy");
    fs::write(folder.path().join("tengine"), "#!/bin/sh\n").expect("another program");
    let link = folder.path().join("nginx");
    std::os::unix::fs::symlink(NGINX, &link).expect("a link");
    let found = |name: &str| -> Vec<PathBuf> {
        let target = Target::Name(name.to_owned());
        let mut found: Vec<PathBuf> = installed(&target, Some(folder.path().as_os_str()))
            .into_values()
            .filter(|path| path.starts_with(folder.path()))
            .collect();
        found.sort();
        found
    };
    // The link leads to the file that the well-known places have as well: it counts once.
    assert_eq!(found("nginx"), [angie.clone(), link]);
    assert_eq!(found("angie"), [angie]);
    assert!(found("tengine").is_empty());
    assert!(installed(&Target::Pid(Pid(1)), None).is_empty());
}

#[test]
fn an_instance_is_found_by_any_of_its_processes_and_by_name() {
    needs_nginx!();
    let nginx = Throwaway::start(&plain());
    let first = nginx.with_workers(2);
    assert_eq!(first.instance.pid, nginx.pid());
    assert_eq!(first.instance.exe, NGINX);
    assert_eq!(first.instance.conf.as_deref(), nginx.path("nginx.conf").to_str());
    assert!(
        first
            .instance
            .version
            .as_deref()
            .is_some_and(|version| version.starts_with("nginx/1."))
    );
    assert_ne!(first.instance.netns, Netns(0));
    assert_eq!(roles(&first), [Role::Master, Role::Worker, Role::Worker]);
    assert_eq!(first.command.error_log.as_deref(), Some("stderr"));
    assert!(first.build.conf.is_some(), "{:?}", first.build);
    assert!(!first.is_orphaned);
    let pids = first
        .processes
        .iter()
        .map(|process| (process.pid.0, process.pid))
        .collect::<BTreeMap<_, _>>();
    assert_eq!(first.log_pids(), pids);
    assert!(
        first
            .processes
            .iter()
            .all(|process| process.started >= first.processes[0].started)
    );
    for worker in &first.instance.workers {
        assert_eq!(found(*worker), first);
    }
    for name in ["nginx", "/usr/sbin/nginx"] {
        let all =
            find(&Target::Name(name.trim_start_matches("/usr/sbin/").into())).expect("/proc is readable");
        assert!(all.contains(&first), "{name}: {all:?}");
    }
    assert_eq!(
        find(&Target::Name("no-such-nginx".into())).expect("/proc is readable"),
        vec![]
    );
    assert_eq!(
        find(&Target::Name("angie".into())).expect("/proc is readable"),
        vec![]
    );
}

#[test]
fn after_a_reload_old_workers_are_told_from_new_ones() {
    needs_nginx!();
    let nginx = Throwaway::start(&full(
        HEAD,
        "server { listen unix:@/front.sock; location / { proxy_pass http://unix:@/slow.sock; } }",
    ));
    let before = nginx.with_workers(2);
    // A request in the hands of a backend holds its worker.
    let backend = UnixListener::bind(nginx.path("slow.sock")).expect("a socket");
    let mut client = UnixStream::connect(nginx.path("front.sock")).expect("nginx listens");
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
    let _held = backend.accept().expect("nginx passes it on");
    nginx.signal(Signal::SIGHUP);
    let after = eventually("an old worker beside two new ones", || {
        Some(nginx.found())
            .filter(|found| roles(found) == [Role::Master, Role::Worker, Role::Worker, Role::OldWorker])
    });
    let old: Vec<&Process> = after
        .processes
        .iter()
        .filter(|process| process.role == Role::OldWorker)
        .collect();
    assert!(before.instance.workers.contains(&old[0].pid));
    assert!(after.instance.workers.contains(&old[0].pid), "it still serves");
    assert!(after.generation_started() >= before.generation_started());
    drop(client);
    eventually("the old worker ends", || {
        (nginx.found().instance.workers.len() == 2).then_some(())
    });
}

#[test]
fn a_binary_upgrade_gives_two_instances() {
    needs_nginx!();
    // An nginx whose parent is the one that started it takes no upgrade.
    let nginx = Throwaway::start(&plain().replace("daemon off;", ""));
    nginx.with_workers(2);
    nginx.signal(Signal::SIGUSR2);
    let new = eventually("a second master with its workers", || {
        let all = find(&Target::Name("nginx".into())).expect("/proc is readable");
        let conf = nginx.path("nginx.conf");
        let is_new = |found: &Found| {
            found.instance.conf.as_deref() == conf.to_str()
                && found.instance.pid != nginx.pid()
                && roles(found) == [Role::Master, Role::Worker, Role::Worker]
        };
        all.into_iter().find(is_new)
    });
    let old = nginx.found();
    send(new.instance.pid, Signal::SIGTERM);
    eventually("the new master ends", || {
        find(&Target::Pid(new.instance.pid)).is_err().then_some(())
    });
    assert_eq!(
        roles(&old),
        [Role::Master, Role::Worker, Role::Worker],
        "the new master is none of its processes"
    );
    assert_eq!(old.executable, new.executable);
}

#[test]
fn a_single_process_is_an_instance() {
    needs_nginx!();
    let nginx = Throwaway::start(&plain().replace("daemon off;", "daemon off; master_process off;"));
    let found = nginx.found();
    assert_eq!(roles(&found), [Role::Single]);
    assert_eq!(found.instance.conf.as_deref(), nginx.path("nginx.conf").to_str());
    assert!(found.instance.workers.is_empty());
}

#[test]
fn a_configuration_test_is_no_instance() {
    needs_nginx!();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let conf = directory.path().join("nginx.conf");
    // Opening a pipe waits for its other end: the test of the configuration stands still.
    mkfifo(&conf, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut child = Command::new(NGINX)
        .arg("-t")
        .arg("-c")
        .arg(&conf)
        .spawn()
        .expect("nginx starts");
    let pid = Pid(child.id());
    let outcome = eventually("nginx has begun", || match find(&Target::Pid(pid)) {
        Err(FindError::NotNginx { .. }) => None,
        outcome => Some(outcome),
    });
    let all = find(&Target::Name("nginx".into())).expect("/proc is readable");
    child.kill().expect("it lives");
    let _ = child.wait();
    assert!(
        matches!(outcome, Err(FindError::OneShot(shot)) if shot == pid),
        "{outcome:?}"
    );
    assert!(all.iter().all(|found| found.instance.pid != pid));
}

#[test]
fn other_processes_are_told_from_missing_ones() {
    let own = Pid(std::process::id());
    let error = find(&Target::Pid(own)).expect_err("this is no nginx");
    assert!(
        matches!(&error, FindError::NotNginx { pid, .. } if *pid == own),
        "{error}"
    );
    let error = find(&Target::Pid(Pid(0x7fff_fff0))).expect_err("no such pid");
    let text = "no process has pid 2147483632: see `pgrep -a nginx` for those that run";
    assert_eq!(error.to_string(), text);
    let mut child = Command::new("true").spawn().expect("true runs");
    let pid = Pid(child.id());
    let text = eventually("it has ended", || match find(&Target::Pid(pid)) {
        Err(error) if error.to_string().contains("has ended") => Some(error.to_string()),
        _ => None,
    });
    let _ = child.wait();
    assert_eq!(
        text,
        format!(
            "pid {pid} is true, which has ended, not an nginx: give the pid of an nginx master or worker, or `nginx`"
        )
    );
}

#[test]
fn workers_without_a_master_are_found() {
    needs_nginx!();
    let mut nginx = Throwaway::start(&plain());
    let before = nginx.with_workers(2);
    // Without its master a worker is known by its title alone, which it gives itself.
    for worker in &before.instance.workers {
        eventually("its title", || {
            let title = fs::read_to_string(format!("/proc/{worker}/cmdline")).ok()?;
            title.starts_with("nginx: worker process").then_some(())
        });
    }
    nginx.child.kill().expect("it lives");
    nginx.child.wait().expect("it ended");
    let after = found(before.instance.workers[0]);
    let config = config::read(&after, Options::default());
    for worker in &before.instance.workers {
        send(*worker, Signal::SIGKILL);
    }
    assert!(after.is_orphaned);
    assert_eq!(after.instance.workers, before.instance.workers);
    assert_eq!(after.instance.conf, None);
    let expected = format!(
        "the master of worker {} is gone, and with it the name of its configuration: give it with --config",
        after.instance.pid
    );
    assert_eq!(config.problems, [expected]);
}

#[test]
fn a_renamed_and_deleted_executable_is_still_nginx() {
    needs_nginx!();
    let nginx = Throwaway::start_as(&plain(), |directory| {
        let copy = directory.join("my-proxy");
        fs::copy(NGINX, &copy).expect("a copy");
        let mut command = Command::new(&copy);
        command.arg("-c").arg(directory.join("nginx.conf"));
        command
    });
    fs::remove_file(nginx.path("my-proxy")).expect("the copy");
    let by_pid = nginx.with_workers(2);
    assert_eq!(by_pid.instance.exe, nginx.path("my-proxy").to_string_lossy());
    let by_name = find(&Target::Name("my-proxy".into())).expect("/proc is readable");
    assert_eq!(by_name, [by_pid]);
}

#[test]
fn an_instance_in_a_pid_namespace_logs_other_numbers() {
    needs_nginx!();
    let mut shell = None;
    let nginx = Throwaway::start_as(&plain(), |directory| {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", NGINX, "-c"])
            .arg(directory.join("nginx.conf"));
        shell = Some(directory.join("nginx.conf"));
        command
    });
    let conf = shell.expect("the command was made");
    let found = eventually("it is found", || {
        let all = find(&Target::Name("nginx".into())).expect("/proc is readable");
        let is_it =
            |found: &Found| found.instance.conf.as_deref() == conf.to_str() && found.processes.len() == 3;
        all.into_iter().find(is_it)
    });
    assert_eq!(found.processes[0].inner_pid, 1);
    assert_eq!(found.log_pids()[&1], found.instance.pid);
    assert_ne!(found.instance.pid, Pid(1));
    send(found.instance.pid, Signal::SIGTERM);
    drop(nginx);
}

#[test]
fn finding_by_name_is_fast_among_many_processes() {
    needs_nginx!();
    let nginx = Throwaway::start(&plain());
    nginx.with_workers(2);
    let mut sleepers: Vec<Child> = (0..500)
        .map(|_| Command::new("sleep").arg("60").spawn().expect("sleep runs"))
        .collect();
    let (took, all) = (0..5)
        .map(|_| {
            let began = processor_time();
            let all = find(&Target::Name("nginx".into())).expect("/proc is readable");
            (processor_time() - began, all)
        })
        .min_by_key(|(took, _)| *took)
        .expect("five runs");
    for sleeper in &mut sleepers {
        sleeper.kill().expect("it sleeps");
        sleeper.wait().expect("it ended");
    }
    assert!(all.iter().any(|found| found.instance.pid == nginx.pid()));
    println!("found among 500 processes in {took:?} of the processor");
    assert!(took < Duration::from_millis(100), "{took:?}");
}

fn peers(config: &Config) -> Vec<String> {
    let shown = |peer: &crate::event::ConfiguredPeer| format!("{} = {}", peer.peer, peer.upstream);
    config.peers.iter().map(shown).collect()
}

#[test]
fn the_configuration_of_a_running_nginx_is_read_with_its_includes() {
    needs_nginx!();
    let nginx = Throwaway::start_as(
        &full(
            HEAD,
            "include conf.d/*.conf; server { listen unix:@/front.sock; location / { proxy_pass http://api; } }",
        ),
        |directory| {
            fs::create_dir(directory.join("conf.d")).expect("a directory");
            fs::write(
                directory.join("conf.d/api.conf"),
                "upstream api { server 127.0.0.1:1; }",
            )
            .expect("a file");
            let mut command = Command::new(NGINX);
            // Relative names, counted from the prefix.
            command
                .arg("-p")
                .arg(directory)
                .args(["-c", "nginx.conf", "-g", "error_log global.log;"]);
            command
        },
    );
    let found = nginx.with_workers(2);
    let config = config::read(&found, Options::default());
    assert_eq!(config.path, nginx.path("nginx.conf").to_string_lossy());
    assert_eq!(peers(&config), ["127.0.0.1:1 = api"]);
    assert_eq!(config.upstreams, 1);
    assert_eq!(config.problems, [""; 0]);
    let logs =
        [nginx.path("global.log"), nginx.path("error.log")].map(|path| path.to_string_lossy().into_owned());
    assert_eq!(config.error_logs, logs);

    // Another file, given by hand.
    let other = nginx.path("other.conf");
    fs::write(&other, "http { upstream b { server 127.0.0.1:2; } }").expect("a file");
    let config = config::read(
        &found,
        Options {
            file: Some(&other),
            resolve: false,
            started: None,
        },
    );
    assert_eq!(peers(&config), ["127.0.0.1:2 = b"]);

    // A later change is told, and a broken text gives no names.
    let later = std::time::SystemTime::now() + Duration::from_secs(2);
    fs::write(
        nginx.path("conf.d/api.conf"),
        "upstream api { server 127.0.0.1:3; }",
    )
    .expect("a file");
    fs::File::options()
        .append(true)
        .open(nginx.path("conf.d/api.conf"))
        .and_then(|file| file.set_modified(later))
        .expect("a later time");
    let config = config::read(&found, Options::default());
    assert_eq!(peers(&config), ["127.0.0.1:3 = api"]);
    let told = format!(
        "{} was changed after the workers started: names are those of the new text, reload nginx to be sure",
        nginx.path("conf.d/api.conf").display()
    );
    assert_eq!(config.problems, [told]);
    fs::write(
        nginx.path("conf.d/api.conf"),
        "upstream api { server 127.0.0.1:3; ",
    )
    .expect("a file");
    let config = config::read(&found, Options::default());
    assert!(config.peers.is_empty());
    assert_eq!(
        config.problems,
        [
            format!(
                "{}:1: unexpected end of file, expecting \"}}\"",
                nginx.path("conf.d/api.conf").display()
            ),
            format!(
                "the running nginx cannot have loaded {} as it is now: peers are shown by address",
                nginx.path("nginx.conf").display()
            ),
        ]
    );
    assert_eq!(config.error_logs, logs);
}

#[test]
fn files_and_names_are_those_of_nginxs_own_mount_namespace() {
    needs_nginx!();
    let conf = full(
        HEAD,
        "include /mnt/nginx-test.conf; server { listen unix:@/front.sock; location / { proxy_pass http://api; } }",
    );
    let nginx = Throwaway::start_as(&conf, |directory| {
        fs::write(
            directory.join("hosts"),
            "127.0.0.1 localhost\n127.0.0.77 backend.test\n",
        )
        .expect("a file");
        let script = format!(
            "mount -t tmpfs none /mnt && mount --bind {0}/hosts /etc/hosts &&
             echo 'upstream api {{ server backend.test:8080; }}' > {0}/real.conf &&
             ln -s {0}/real.conf /mnt/nginx-test.conf && exec {NGINX} -c {0}/nginx.conf \"$@\"",
            directory.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]);
        command
    });
    let config = config::read(
        &nginx.with_workers(2),
        Options {
            file: None,
            resolve: true,
            started: None,
        },
    );
    assert_eq!(config.problems, [""; 0]);
    assert_eq!(peers(&config), ["127.0.0.77:8080 = api"]);
    assert!(!Path::new("/mnt/nginx-test.conf").exists(), "only nginx sees it");
}

fn context(nginx: &Throwaway) -> Context {
    Context {
        zone: Zone::of(nginx.pid()),
        pids: nginx.found().log_pids(),
        unix_paths: vec![nginx.path("gone.sock").to_string_lossy().into_owned()],
    }
}

fn next_line(tail: &mut Tail, context: &Context) -> LogLine {
    let lines = eventually("a line", || {
        Some(tail.poll_lines()).filter(|lines| !lines.is_empty())
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    error_log::parse(&lines[0], context).unwrap_or_else(|| panic!("not understood: {}", lines[0]))
}

#[test]
fn the_log_of_a_running_nginx_is_followed_and_understood() {
    needs_nginx!();
    let nginx = Throwaway::start(&full(
        HEAD,
        "server { listen unix:@/front.sock; server_name h.example;
            location / { proxy_pass http://unix:@/gone.sock:/up; }
            location /slow { proxy_pass http://unix:@/slow.sock; proxy_read_timeout 50ms; } }",
    ));
    let found = nginx.with_workers(2);
    let config = config::read(&found, Options::default());
    let mut tail = Tail::open(nginx.pid(), &config.error_logs);
    assert_eq!(tail.unseen(), [""; 0]);
    let context = context(&nginx);
    assert!(nginx.get("/a?token=secret").contains("502"));
    let line = next_line(&mut tail, &context);
    let gone = nginx.path("gone.sock").to_string_lossy().into_owned();
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs())
        .expect("before the year 292277026596");
    assert!(
        (now - 30..=now).contains(&line.time),
        "{} is not about {now}",
        line.time
    );
    assert!(found.instance.workers.contains(&line.pid));
    assert!(line.connection.is_some());
    assert_eq!(line.level, "crit");
    assert_eq!(line.message, format!("connect() to unix:{gone} failed"));
    assert_eq!(line.errno, Some(Errno(2)));
    assert_eq!(line.action.as_deref(), Some("connecting to upstream"));
    assert_eq!(line.upstream, Some(format!("http://unix:{gone}:/upa")));
    assert_eq!(line.peer, Some(Peer::Unix(gone)));
    assert_eq!(line.client.as_deref(), Some("unix:"));
    assert_eq!(line.host.as_deref(), Some("h.example"));
    assert_eq!(line.request, Some(("GET".into(), "/a".into())));
    assert!(!line.text.contains("secret"), "{}", line.text);
    assert!(
        line.text.contains("request: \"GET /a HTTP/1.1\""),
        "{}",
        line.text
    );

    // A line that is logged after the peer was let go has no colon behind the path.
    let slow = nginx.path("slow.sock");
    let _listener = UnixListener::bind(&slow).expect("a socket");
    assert!(nginx.get("/slow/x?y").contains("504"));
    let line = next_line(&mut tail, &context);
    assert_eq!(
        (line.message.as_str(), line.errno),
        ("upstream timed out", Some(Errno(110)))
    );
    assert_eq!(line.peer, None, "the path's end cannot be known");
    let slow = slow.to_string_lossy().into_owned();
    let known = Context {
        unix_paths: vec![slow.clone()],
        ..context.clone()
    };
    assert_eq!(
        error_log::parse(&line.text, &known).expect("a line").peer,
        Some(Peer::Unix(slow))
    );

    // logrotate: renamed, then reopened on USR1.
    fs::rename(nginx.path("error.log"), nginx.path("error.log.1")).expect("the log");
    assert!(nginx.get("/old").contains("502"));
    assert_eq!(
        next_line(&mut tail, &context).request,
        Some(("GET".into(), "/old".into()))
    );
    nginx.signal(Signal::SIGUSR1);
    eventually("the log is reopened", || {
        nginx.path("error.log").exists().then_some(())
    });
    assert!(nginx.get("/new").contains("502"));
    assert_eq!(
        next_line(&mut tail, &context).request,
        Some(("GET".into(), "/new".into()))
    );
    assert_eq!(tail.take_lost(), 0);
}

#[test]
fn a_zone_from_the_environment_shows_in_the_first_line() {
    needs_nginx!();
    let conf = full(
        HEAD,
        "server { listen unix:@/front.sock; location / { proxy_pass http://unix:@/gone.sock; } }",
    );
    let nginx = Throwaway::start_as(&conf, |directory| {
        let mut command = Command::new(NGINX);
        command
            .arg("-c")
            .arg(directory.join("nginx.conf"))
            .env("TZ", "XYZ-9:30");
        command
    });
    nginx.with_workers(2);
    let log = nginx.path("error.log").to_string_lossy().into_owned();
    let mut tail = Tail::open(nginx.pid(), &[log]);
    let mut context = context(&nginx);
    assert!(nginx.get("/").contains("502"));
    let lines = eventually("a line", || {
        Some(tail.poll_lines()).filter(|lines| !lines.is_empty())
    });
    let now = crate::host::clock().1 / 1_000_000_000;
    let line = error_log::parse_fresh(&lines[0], &mut context, now).expect("a line");
    assert!(
        (now - 20..=now).contains(&line.time),
        "{} is not about {now}: {}",
        line.time,
        line.text
    );
    assert_eq!(
        error_log::parse(&lines[0], &context).expect("a line").time,
        line.time,
        "it is remembered"
    );
}
