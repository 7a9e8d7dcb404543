//! The command line as users meet it: transcripts, and files in every bad shape.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tracer::{
    event::{Input, Ktime, LossClass, Stamped},
    session::Origin,
    source::recording::{ClockReading, FORMAT, Header, RecordingWriter},
};

#[test]
fn transcripts() {
    trycmd::TestCases::new()
        .env("TZ", "UTC")
        .case("../tests/cmd/*.trycmd");
}

fn tracer(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(arguments)
        .env("TZ", "UTC")
        .current_dir(folder)
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one line on stderr.
fn complaint(output: &Output) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().to_owned()
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cmd/report.in/trace.jsonl")
}

#[test]
fn a_trace_cut_anywhere_is_reported_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(sample()).unwrap();
    let session = whole.iter().position(|byte| *byte == b'\n').unwrap();
    for cut in (session + 1..whole.len()).step_by(523) {
        std::fs::write(folder.path().join("cut.jsonl"), &whole[..cut]).unwrap();
        let output = tracer(&["report", "--json", "cut.jsonl"], folder.path());
        assert_eq!(
            output.status.code(),
            Some(0),
            "cut at {cut}: {}",
            text(&output.stderr)
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["complete"], false, "cut at {cut}");
    }
}

#[test]
fn stdin_and_compression_make_no_difference() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(sample()).unwrap();
    std::fs::write(
        folder.path().join("t.jsonl.zst"),
        zstd::encode_all(&whole[..], 3).unwrap(),
    )
    .unwrap();
    let plain = tracer(&["report", sample().to_str().unwrap()], folder.path());
    let packed = tracer(&["report", "t.jsonl.zst"], folder.path());
    assert_eq!(text(&plain.stdout), text(&packed.stdout));
    let mut piped = Command::new(env!("CARGO_BIN_EXE_tracer"));
    piped
        .args(["report", "-"])
        .env("TZ", "UTC")
        .stdin(std::fs::File::open(sample()).unwrap());
    assert_eq!(text(&piped.output().unwrap().stdout), text(&plain.stdout));
}

#[test]
fn a_damaged_compressed_trace_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(sample()).unwrap();
    let mut packed = zstd::encode_all(&whole[..], 3).unwrap();
    let middle = packed.len() / 2;
    for byte in &mut packed[middle..middle + 40] {
        *byte ^= 0x5a;
    }
    std::fs::write(folder.path().join("t.jsonl.zst"), packed).unwrap();
    let output = tracer(&["report", "t.jsonl.zst"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    let complaint = complaint(&output);
    assert!(complaint.starts_with("tracer: t.jsonl.zst: "), "{complaint}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tracer"))
        .args(["explain"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(stderr, "");
}

/// A recording of a tracer that watched nothing for ten seconds.
fn recording(path: &Path, ends_orderly: bool) {
    let mut inputs: Vec<_> = (0..10)
        .map(|second| stamped(second * 1_000_000_000, Input::Tick))
        .collect();
    if ends_orderly {
        inputs.push(stamped(10_000_000_000, Input::Detach { in_flight: 3 }));
    }
    record(path, &inputs);
}

/// An input so many nanoseconds after the recording began.
fn stamped(after: u64, input: Input) -> Stamped {
    Stamped {
        at: Ktime(1_000_000_000_000 + after),
        input,
    }
}

fn record(path: &Path, inputs: &[Stamped]) {
    let header = Header {
        format: FORMAT.to_owned(),
        origin: Origin {
            tool: "tracer 0.0.9".to_owned(),
            host: "web-1".to_owned(),
            kernel: "6.18.0".to_owned(),
            boot_id: None,
        },
        command: "tracer attach --record a.rec.zst".to_owned(),
        clock: ClockReading {
            at: Ktime(1_000_000_000_000),
            unix_ns: 1_795_349_071_000_000_000,
        },
    };
    let mut writer = RecordingWriter::create(path, &header).unwrap();
    for input in inputs {
        writer.push(input).unwrap();
    }
    writer.flush().unwrap();
}

#[test]
fn a_recording_becomes_a_trace_of_the_recorded_host() {
    let folder = tempfile::tempdir().unwrap();
    recording(&folder.path().join("a.rec.zst"), true);
    let output = tracer(&["replay", "a.rec.zst", "-o", "b.jsonl"], folder.path());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("0 attempts in 10.00 s, 0 failed, 3 still under way"),
        "{shown}"
    );
    let trace = std::fs::read_to_string(folder.path().join("b.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = trace
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!(first["host"], "web-1");
    assert_eq!(first["started"], "2026-11-22T12:04:31.000000000Z");
    assert_eq!(first["options"]["recorded_by"], "tracer 0.0.9");
    assert_eq!(
        (&last["type"], &last["complete"]),
        (&"summary".into(), &true.into())
    );
}

#[test]
fn a_recording_that_was_cut_gives_a_trace_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    recording(&folder.path().join("a.rec"), false);
    let output = tracer(&["replay", "a.rec", "--json"], folder.path());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let last = text(&output.stdout).lines().last().unwrap().to_owned();
    let summary: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!(
        (&summary["type"], &summary["complete"]),
        (&"summary".into(), &false.into())
    );
}

#[test]
fn a_full_disk_is_said_once_and_ends_with_status_2() {
    let folder = tempfile::tempdir().unwrap();
    recording(&folder.path().join("a.rec"), true);
    std::os::unix::fs::symlink("/dev/full", folder.path().join("full.jsonl")).unwrap();
    let output = tracer(
        &["replay", "a.rec", "-o", "full.jsonl", "-o", "good.jsonl"],
        folder.path(),
    );
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert_eq!(
        said,
        "tracer: full.jsonl: the disk is full: what it holds stays readable, nothing more is written to it\n"
    );
    let good = std::fs::File::open(folder.path().join("good.jsonl")).unwrap();
    let last = BufReader::new(good).lines().last().unwrap().unwrap();
    assert!(last.starts_with("{\"type\":\"summary\""), "{last}");
}

#[test]
fn a_file_that_may_not_grow_ends_with_a_whole_record() {
    let folder = tempfile::tempdir().unwrap();
    let losses: Vec<_> = (0..2_000)
        .map(|number| {
            stamped(
                number * 400_000_000,
                Input::Lost {
                    class: LossClass::Ring,
                    count: number,
                },
            )
        })
        .collect();
    record(&folder.path().join("a.rec"), &losses);
    for file in ["b.jsonl", "b.jsonl.zst"] {
        // The limit of the shell stands for a disk that fills up in the middle of a write.
        let output = Command::new("sh")
            .arg("-c")
            .arg("trap '' XFSZ; ulimit -f 8; exec \"$0\" replay a.rec --quiet -o \"$1\"")
            .args([env!("CARGO_BIN_EXE_tracer"), file])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(
            text(&output.stderr).contains("the file may not grow any more"),
            "{}",
            text(&output.stderr)
        );
        let report = tracer(&["report", "--json", file], folder.path());
        assert_eq!(report.status.code(), Some(0), "{}", text(&report.stderr));
        let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
        assert!(report["lost"]["ring"].as_u64().unwrap() > 0, "{report:#}");
        let gaps = report["gaps"].to_string();
        assert!(!gaps.contains("in the middle of"), "nothing is torn: {gaps}");
    }
}

#[test]
fn an_output_that_cannot_be_created_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    recording(&folder.path().join("a.rec"), true);
    let output = tracer(&["replay", "a.rec", "-o", "nowhere/b.jsonl"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        complaint(&output),
        "tracer: cannot write nowhere/b.jsonl: no such file or directory"
    );
}
