//! What is measured: one nginx in front of another, both as fast as they go.

use std::{fmt, path::Path};

use anyhow::{Context as _, Result};
use xtask::lab::{
    Run,
    netns::Netns,
    nginx::{Nginx, Start},
};

/// Worker processes of each nginx.
const WORKERS: usize = 2;
/// How nginx listens: where its workers share a listener, how many clients each has is another in every run, and the
/// throughput with it (by 9 %; with this and every worker on its own processor by 2 %).
const LISTEN: &str = "backlog=4096 reuseport";
/// The front's port for traffic that connects anew.
const FRESH: u16 = 8001;
/// The front's port for traffic over kept connections.
const KEPT: u16 = 8002;
/// The upstream's ports: several, so that a long run does not exhaust the pairs of ports.
const UPSTREAM: [u16; 4] = [9001, 9002, 9003, 9004];

/// How the front talks to its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// A new upstream connection for every request.
    Fresh,
    /// Upstream connections are kept.
    Kept,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "new connection per request",
            Self::Kept => "kept connections",
        })
    }
}

/// Two nginx in one namespace; only the front is traced.
pub(super) struct Site {
    front: Nginx,
    _upstream: Nginx,
}

impl Site {
    pub(super) fn start(run: &Run, namespace: &Netns, nginx: &Path) -> Result<Self> {
        // A port whose connection has ended is free again after a second, as on any busy proxy.
        namespace
            .sh("sysctl -q -w net.ipv4.ip_local_port_range='10000 65000' net.ipv4.tcp_tw_reuse=1")
            .context("preparing the namespace")?;
        let listen: String = UPSTREAM
            .iter()
            .map(|port| format!("listen 127.0.0.1:{port} {LISTEN}; "))
            .collect();
        let servers: String = UPSTREAM
            .iter()
            .map(|port| format!("server 127.0.0.1:{port}; "))
            .collect();
        let upstream = start(
            run,
            namespace,
            nginx,
            "upstream",
            &format!("server {{ {listen} return 200 'measured\\n'; }}"),
        )?;
        let front = start(
            run,
            namespace,
            nginx,
            "front",
            &format!(
                "upstream fresh {{ {servers} }}\n\
                 upstream kept {{ {servers} keepalive 256; keepalive_requests 100000000; }}\n\
                 server {{ listen 127.0.0.1:{FRESH} {LISTEN}; location / {{ proxy_pass http://fresh; }} }}\n\
                 server {{ listen 127.0.0.1:{KEPT} {LISTEN}; location / {{ proxy_pass http://kept; \
                 proxy_http_version 1.1; proxy_set_header Connection ''; }} }}"
            ),
        )?;
        Ok(Self {
            front,
            _upstream: upstream,
        })
    }

    /// The master to trace.
    pub(super) fn pid(&self) -> u32 {
        self.front.pid()
    }

    /// Where requests of this kind go.
    pub(super) fn port(&self, traffic: Traffic) -> u16 {
        match traffic {
            Traffic::Fresh => FRESH,
            Traffic::Kept => KEPT,
        }
    }
}

fn start(run: &Run, namespace: &Netns, program: &Path, label: &str, http: &str) -> Result<Nginx> {
    let folder = run.folder(label)?;
    let dir = folder.display();
    let config = format!(
        "user root;\n\
         worker_processes {WORKERS};\n\
         worker_cpu_affinity auto;\n\
         pid {dir}/nginx.pid;\n\
         error_log {dir}/error.log error;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         access_log off;\n\
         keepalive_requests 100000000;\n\
         client_body_temp_path {dir}/tmp/body;\n\
         proxy_temp_path {dir}/tmp/proxy;\n\
         fastcgi_temp_path {dir}/tmp/fastcgi;\n\
         uwsgi_temp_path {dir}/tmp/uwsgi;\n\
         scgi_temp_path {dir}/tmp/scgi;\n\
         {http}\n\
         }}\n"
    );
    Nginx::start(
        namespace,
        &Start {
            program,
            config: &config,
            folder: &folder,
            etc: None,
            mounts: &[],
            workers: WORKERS,
            daemon: false,
            contained: false,
            context: None,
            confinement: None,
        },
    )
    .with_context(|| format!("starting the nginx called {label}"))
}
