//! The demonstration's stage: what `cargo xtask demo` shows and the referee's test measures.

pub mod show;

use anyhow::{Context as _, Result};

use crate::{
    lab::{Run, backend::Order},
    scenario::{NginxStep, Receive, Request, Scenario, Step, Tell, stage::Stage},
};

/// The paths that succeed.
pub const HEALTHY: &[&str] = &["/shop", "/static"];
/// The paths that fail, or are saved by a retry.
pub const FAILING: &[&str] = &[
    "/api", "/search", "/billing", "/reports", "/mail", "/chat", "/files", "/uploads", "/geo",
];

/// The demonstration's scenario.
pub fn scenario() -> Result<Scenario> {
    Scenario::parse("demo", include_str!("demo.toml")).context("the demonstration's scenario")
}

/// A keepalive race, made for sure: nginx is held while a request for it arrives and, after that, the backend closes the
/// idle connection on which nginx is about to send it.
pub fn race(run: &Run, stage: &mut Stage, client: &str) -> Result<()> {
    let request = |method: &str, status| Request {
        path: "/login".to_owned(),
        method: method.to_owned(),
        body: 0,
        body_at_first: None,
        times: 1,
        together: 1,
        status,
        cut: false,
        client: Some(client.to_owned()),
    };
    let steps = [
        Step::Request(request("GET", Some(200))),
        Step::Nginx(NginxStep::StopWorkers),
        Step::Send(request("POST", None)),
        Step::Tell(Tell {
            backend: "login".to_owned(),
            order: Order::CloseIdle,
            connections: None,
        }),
        Step::Nginx(NginxStep::ContinueWorkers),
        Step::Receive(Receive {
            client: client.to_owned(),
            status: 502,
        }),
        Step::HangUp(client.to_owned()),
    ];
    for step in &steps {
        stage
            .take(run, step)
            .with_context(|| format!("while doing {step:?}"))?;
    }
    Ok(())
}
