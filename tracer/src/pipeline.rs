//! Next input → engine → outputs, until it is time to stop. The only owner of the state; one thread.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    engine::Engine,
    event::{Answer, Input, Output, Question, Stamped},
    host,
    outputs::{Closed, Outputs},
    source::{live::Live, recording::RecordingWriter},
};

/// How often the ring is looked at. The programs never wake the tracer: a wake-up per record would cost the machine
/// more than the record, and a person does not see a fortieth of a second.
const POLL: Duration = Duration::from_millis(25);
/// Questions are answered at once, before time moves on for the engine, for at most this long in each second; what is
/// asked beyond (a storm of failures) is answered on other threads.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Questions that wait for other threads; what comes later is answered too late for its attempt anyway.
const MAX_QUESTIONS: usize = 256;
/// Questions that each wait in a thread of their own for somebody else than this host.
const MAX_ASIDE: usize = 8;
/// Threads that answer what is not answered at once: a storm of questions must not take the machine's processors.
pub const ANSWERING: usize = 2;

/// When to stop by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After this time.
    pub duration: Option<Duration>,
    /// After this many failed attempts.
    pub count: Option<u64>,
}

/// What the inputs pass through.
pub struct Pipeline {
    engine: Engine,
    outputs: Outputs,
    recorder: Option<RecordingWriter>,
}

impl Pipeline {
    /// Puts the parts together.
    #[must_use]
    pub fn new(engine: Engine, outputs: Outputs, recorder: Option<RecordingWriter>) -> Self {
        Self {
            engine,
            outputs,
            recorder,
        }
    }

    /// Passes one input on; returns the questions the engine asks.
    pub fn step(&mut self, stamped: Stamped) -> Vec<Question> {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.push(&stamped)
        {
            say(&format!("the recording ends here: {error}"));
            self.recorder = None;
        }
        self.outputs.observe(stamped.at, &stamped.input);
        let mut questions = Vec::new();
        for output in self.engine.apply(stamped.at, stamped.input) {
            match output {
                Output::Ask(question) => questions.push(question),
                output => self.outputs.take(output),
            }
        }
        questions
    }

    /// Takes an input, and answers what it makes the engine ask.
    fn feed(&mut self, stamped: Stamped, live: &mut Live, asking: &mut Asking) {
        let at = stamped.at;
        let mut questions = VecDeque::from(self.step(stamped));
        while let Some(question) = questions.pop_front() {
            // Answered before any later input: under load a batch holds more time than an attempt waits. An answer may make
            // the next question.
            if let Some(input) = asking.ask(live, question) {
                questions.extend(self.step(Stamped { at, input }));
            }
        }
    }

    /// Passes on what is new, piece by piece, so that a piece is written before the next one is read.
    fn catch_up(&mut self, live: &mut Live, asking: &mut Asking) -> Result<()> {
        loop {
            for stamped in live.poll()? {
                self.feed(stamped, live, asking);
            }
            if !live.is_behind() {
                return Ok(());
            }
        }
    }

    /// Ends the files.
    #[must_use]
    pub fn close(mut self) -> Closed {
        if let Some(mut recorder) = self.recorder.take()
            && let Err(error) = recorder.flush()
        {
            say(&format!("the recording is not whole: {error}"));
        }
        self.outputs.close()
    }
}

/// A reader of stderr that has gone is no reason to end.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "tracer: {text}");
}

/// The signals that end a trace.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Follows nginx until a signal, a limit, or nobody reads any more. `ready` is called once everything is attached.
///
/// # Errors
/// The kernel half cannot be read any more; what was written so far is ended properly all the same.
pub async fn run(
    mut live: Live,
    mut pipeline: Pipeline,
    limits: Limits,
    ready: impl FnOnce() -> Result<()>,
) -> Result<Closed> {
    let mut stop = Stop::new()?;
    let (answer_to, mut answers) = mpsc::unbounded_channel::<(Question, Answer)>();
    let mut asking = Asking {
        asked: 0,
        spent: Duration::ZERO,
        since: Instant::now(),
        aside: Arc::default(),
        answer_to,
    };
    let deadline = limits.duration.map(|duration| Instant::now() + duration);
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for stamped in live.poll()? {
        pipeline.step(stamped);
    }
    pipeline.outputs.begin();
    ready()?;
    let mut failed = Ok(());
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            Some((question, answer)) = answers.recv() => {
                asking.asked -= 1;
                live.answered(question, answer);
            }
            () = stop.requested() => break,
        }
        if let Err(error) = pipeline.catch_up(&mut live, &mut asking) {
            failed = Err(error);
            break;
        }
        pipeline.outputs.settle();
        let enough = limits
            .count
            .is_some_and(|count| pipeline.outputs.failures() >= count);
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if enough || late || pipeline.outputs.is_deaf() {
            break;
        }
    }
    // A second signal ends the program at once: what is on disk by now reads to its last whole line.
    tokio::spawn(async move {
        stop.requested().await;
        std::process::exit(130);
    });
    tokio::task::yield_now().await;
    // What the host still has to say about failures at hand is waited for, within the engine's own bound.
    let patience = Instant::now() + Duration::from_millis(300);
    while asking.asked > 0
        && let Ok(Some((question, answer))) = tokio::time::timeout_at(patience, answers.recv()).await
    {
        asking.asked -= 1;
        live.answered(question, answer);
    }
    match live.detach() {
        Ok(inputs) => {
            for stamped in inputs {
                pipeline.feed(stamped, &mut live, &mut asking);
            }
        }
        Err(error) => failed = failed.and(Err(error)),
    }
    drop(live);
    let closed = pipeline.close();
    failed.map(|()| closed)
}

/// Questions of the engine on their way to the host.
struct Asking {
    asked: usize,
    spent: Duration,
    since: Instant,
    /// How many wait in threads of their own.
    aside: Arc<AtomicUsize>,
    answer_to: mpsc::UnboundedSender<(Question, Answer)>,
}

impl Asking {
    /// Answers at once where there is time for it; otherwise the answer comes later.
    fn ask(&mut self, live: &mut Live, question: Question) -> Option<Input> {
        let now = Instant::now();
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.spent = Duration::ZERO;
        }
        if self.spent < AT_ONCE {
            let answer = match question.is_slow() {
                true => host::answer_from_files(&question),
                false => Some(host::answer(&question)),
            };
            self.spent += now.elapsed();
            if let Some(answer) = answer {
                return Some(Input::Answer { question, answer });
            }
        }
        if question.is_slow() {
            self.ask_aside(live, question);
            return None;
        }
        if self.asked >= MAX_QUESTIONS {
            let why = "too many questions at once".to_owned();
            live.answered(question, Answer::Unavailable { why });
            return None;
        }
        self.asked += 1;
        let answer_to = self.answer_to.clone();
        tokio::task::spawn_blocking(move || {
            let answer = host::answer(&question);
            // Nobody listens any more when the trace has ended.
            let _ = answer_to.send((question, answer));
        });
        None
    }

    /// Asks in a thread of the question's own: it waits for others, and nobody must wait for it.
    fn ask_aside(&mut self, live: &mut Live, question: Question) {
        let unavailable = |why: &str| Answer::Unavailable { why: why.to_owned() };
        if self.aside.load(Ordering::Relaxed) >= MAX_ASIDE {
            return live.answered(question, unavailable("too many questions at once"));
        }
        let (aside, answer_to, asked) = (self.aside.clone(), self.answer_to.clone(), question.clone());
        aside.fetch_add(1, Ordering::Relaxed);
        let asking = std::thread::Builder::new().name("ask".into()).spawn(move || {
            let answer = host::answer(&asked);
            aside.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more when the trace has ended.
            let _ = answer_to.send((asked, answer));
        });
        match asking {
            Ok(_) => self.asked += 1,
            Err(_) => {
                self.aside.fetch_sub(1, Ordering::Relaxed);
                live.answered(question, unavailable("no thread to ask in"));
            }
        }
    }
}
