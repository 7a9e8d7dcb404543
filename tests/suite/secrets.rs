//! What a request carries beside its method, path and Host comes out nowhere: markers in query strings, headers (gRPC's
//! metadata too, in HTTP/2's code), cookies, bodies, parameters and the answers of a nameserver are in no output, no recording and no log of the tracer's, nor in
//! its maps once their attempt has ended.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use xtask::{
    lab::{Run, client::Client, wait_for},
    maps,
    scenario::stage::Stage,
    traced::{RECORDING, Tracer, of_type},
};

use crate::ground::{Ground, live, scenario, tracer};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// In everything that must not come out.
const MARKER: &str = "xsecretx";
/// How a text that begins with it begins in the code of HTTP/2's fields (RFC 7541, Appendix B).
const CODED: &[u8] = b"\xf2\x82\x92\xc2\xa7";

/// Backends that say secrets themselves, and one that hangs up.
const STAGE: &str = r#"
about = "secrets wherever a request or an answer can hold them"
needs = ["node"]
[lab]
nginx.http = """
upstream app { server {app}; keepalive 8; }
upstream unix { server unix:{dir}/app.sock; keepalive 8; }
upstream grpc { server unix:{dir}/grpc.sock; keepalive 8; }
upstream gone { server {gone}; }"""
nginx.server = """
resolver 127.0.0.1:{dns.port} ipv6=off;
location /app { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; }
location /unix { proxy_pass http://unix; proxy_http_version 1.1; proxy_set_header Connection ''; }
location /grpc { grpc_pass grpc://grpc; grpc_set_header Metadata xsecretx-metadata; }
location /gone { proxy_pass http://gone; }
location /fastcgi { fastcgi_pass app; include {dir}/parameters; }
location /uwsgi { uwsgi_pass app; uwsgi_param REQUEST_METHOD $request_method; uwsgi_param REQUEST_URI $request_uri;
    uwsgi_param QUERY_STRING $query_string; }
location /named { set $name app.lab; proxy_pass http://$name:{app.port}; }
location /nameless { set $name missing.lab; proxy_pass http://$name:{app.port}; }"""
names.gone = "127.0.0.1"
steps = []

[lab.programs.app]
command = "node app.js {app.port}"
files.parameters = """
fastcgi_param QUERY_STRING $query_string;
fastcgi_param REQUEST_METHOD $request_method;
fastcgi_param REQUEST_URI $request_uri;
fastcgi_param PASSWORD xsecretx-parameter;
"""
files."app.js" = '''
const fs = require('fs');
const server = require('http').createServer((request, response) => {
    request.resume().on('end', () => {
        if (request.url.includes('/die')) return request.socket.destroy();
        if (request.url.includes('/wait')) {
            const timer = setInterval(() => {
                if (!fs.existsSync('go-on')) return;
                clearInterval(timer);
                response.end('waited');
            }, 10);
            return;
        }
        response.statusCode = request.url.includes('/error') ? 503 : 200;
        response.setHeader('Set-Cookie', 'session=xsecretx-set-cookie');
        response.end('xsecretx-answer');
    });
});
server.keepAliveTimeout = 0;
server.listen(Number(process.argv[2]), '127.0.0.1');
require('http2').createServer().on('stream', (stream, headers) => {
    stream.on('error', () => {}).resume().on('end', () => {
        if (headers[':path'].includes('/die')) return stream.session.destroy();
        stream.respond({ ':status': 200, 'set-cookie': 'xsecretx-set-cookie' }, { waitForTrailers: true });
        stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-message': 'xsecretx-trailer' }));
        stream.end('xsecretx-answer');
    });
}).listen('grpc.sock', () => fs.chmodSync('grpc.sock', 0o666));
require('http').createServer(server.listeners('request')[0]).listen('app.sock', () => fs.chmodSync('app.sock', 0o666));
'''

[lab.programs.dns]
command = "node dns.js {dns.port}"
files."dns.js" = '''
// app.lab is another name's, which has the address; anything else is not there, says a server of such a name.
const named = (name) => Buffer.concat(name.split('.').map((part) => Buffer.from([part.length, ...Buffer.from(part)])));
const port = Number(process.argv[2]);
const udp = require('dgram').createSocket('udp4');
udp.on('message', (asked, from) => {
    const end = asked.indexOf(0, 12) + 5;
    const head = Buffer.from(asked.subarray(0, end));
    const isThere = head.includes('app') && head.readUInt16BE(end - 4) == 1;
    const other = Buffer.concat([named('xsecretx-name'), Buffer.from([0])]);
    const record = (owner, type, data) =>
        Buffer.concat([owner, Buffer.from([0, type, 0, 1, 0, 0, 0, 1, 0, data.length]), data]);
    const soa = Buffer.concat([other, other, Buffer.alloc(20)]);
    const rest = isThere
        ? [record(Buffer.from([0xc0, 12]), 5, other), record(other, 1, Buffer.from([127, 0, 0, 1]))]
        : [record(Buffer.from([0xc0, 12]), 6, soa)];
    head.writeUInt16BE(isThere ? 0x8180 : 0x8183, 2);
    head.writeUInt16BE(isThere ? 2 : 0, 6);
    head.writeUInt16BE(isThere ? 0 : 1, 8);
    head.writeUInt16BE(0, 10);
    udp.send(Buffer.concat([head, ...rest]), from.port, from.address);
});
udp.bind(port, '127.0.0.1');
// Something that can be seen to listen.
require('net').createServer().listen(port, '127.0.0.1');
'''
"#;

/// The tests of what must not come out.
pub fn trials(ground: &Arc<Ground>) -> Vec<Trial> {
    vec![
        live(
            ground,
            "secrets/nothing_but_the_request_line_comes_out",
            |run, nginx| secrets(run, nginx, true),
        ),
        live(
            ground,
            "secrets/with_capture_off_nothing_is_read",
            |run, nginx| secrets(run, nginx, false),
        ),
    ]
}

/// A request with a secret in each of its places.
fn request(path: &str) -> String {
    let body = format!("password={MARKER}-body");
    format!(
        "POST {path}?token={MARKER}-query HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {MARKER}-header\r\n\
         Cookie: session={MARKER}-cookie\r\nReferer: http://lab/?{MARKER}-referrer\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Whether a secret is among these bytes.
fn has_secret(bytes: &[u8]) -> bool {
    let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|found| found == wanted);
    has(MARKER.as_bytes()) || has(CODED)
}

/// In which of a process's maps a secret lies.
fn maps_with_secrets(pid: u32) -> Result<Vec<u32>> {
    let maps = maps::contents(pid)?;
    ensure!(maps.len() > 5, "only {} maps can be read", maps.len());
    Ok(maps
        .into_iter()
        .filter(|(_, bytes)| has_secret(bytes))
        .map(|(id, _)| id)
        .collect())
}

fn secrets(run: &Run, nginx: &Path, captures: bool) -> Result<()> {
    let name = if captures {
        "secrets"
    } else {
        "secrets-capture-off"
    };
    let stage = Stage::set(run, &scenario(name, STAGE)?, nginx)?;
    let capture = if captures { "request-line" } else { "off" };
    let arguments = ["-vv", "--capture", capture].map(str::to_owned);
    let tracer = Tracer::attach(
        run,
        &tracer(),
        &stage.nginx.pid().to_string(),
        &arguments,
        &stage.folder,
    )?;
    let ask = |path: &str| -> Result<Client> {
        let mut client = Client::connect(&stage.near, &stage.address)?;
        client.send_text(&request(path))?;
        Ok(client)
    };
    let paths = [
        ("/app/shop", 200),
        ("/app/shop", 200),
        ("/app/error", 503),
        ("/app/die", 502),
        ("/unix/shop", 200),
        ("/unix/die", 502),
        ("/grpc/shop", 200),
        ("/grpc/shop", 200),
        ("/grpc/die", 502),
        ("/gone", 502),
        ("/fastcgi", 502),
        ("/uwsgi", 400),
        ("/named/shop", 200),
        ("/nameless", 502),
    ];
    let mut waiting = ask("/app/wait")?;
    let path_of = |bytes: &[u8]| bytes.windows(9).any(|found| found == b"/app/wait");
    if captures {
        // While it is under way its beginning is in the table: so these maps are the ones that could hold a secret.
        wait_for("the request in the maps", PATIENCE, || {
            let maps = maps::contents(tracer.pid()).map_err(|error| format!("{error:#}"))?;
            let there = maps.values().any(|bytes| path_of(bytes) && has_secret(bytes));
            there.then_some(()).ok_or_else(|| "it is in none".to_owned())
        })?;
    }
    for (path, status) in paths {
        let answer = ask(path)?.receive()?;
        ensure!(
            answer.status == status,
            "{path}: {} instead of {status}",
            answer.status
        );
    }
    fs::write(stage.folder.join("go-on"), "")?;
    waiting.receive().context("the answer that was waited for")?;
    drop(waiting);
    let wanted = paths.len() + 1;
    // Those that succeeded on a kept connection end with the next or with the connection: nginx ends, and with it all.
    let failures = paths.iter().filter(|(_, status)| *status == 502).count();
    wait_for("the failures in the trace", PATIENCE, || {
        match tracer.n_not_ok(None).map_err(|error| format!("{error:#}"))? {
            n if n >= failures => Ok(()),
            n => Err(format!("{n} of {failures}")),
        }
    })?;
    let pid = tracer.pid();
    let mut stage = stage;
    let folder = stage.folder.clone();
    stage.nginx.stop()?;
    wait_for(
        "the maps to hold no secret",
        PATIENCE,
        || match maps_with_secrets(pid).map_err(|error| format!("{error:#}"))? {
            maps if maps.is_empty() => Ok(()),
            maps => Err(format!("in maps {maps:?}")),
        },
    )?;
    let records = tracer.stop()?;
    let attempts: Vec<_> = of_type(&records, "attempt").collect();
    ensure!(
        attempts.len() >= wanted,
        "{} attempts of {wanted}",
        attempts.len()
    );
    for path in ["/app/shop", "/grpc/shop"] {
        let shops = attempts
            .iter()
            .filter(|attempt| attempt["outcome"] == "ok" && attempt["request"]["path"] == path);
        let (shops, wanted) = (shops.count(), if captures { 2 } else { 0 });
        ensure!(
            shops == wanted,
            "{shops} requests of {path} are known, not {wanted}"
        );
    }
    let recording = zstd::decode_all(fs::File::open(folder.join(RECORDING))?)?;
    ensure!(recording.len() > 1000, "an empty recording");
    ensure!(!has_secret(&recording), "a secret in the recording");
    for file in ["trace.jsonl", "tracer.stdout", "tracer.stderr"] {
        let bytes = fs::read(folder.join(file)).with_context(|| format!("reading {file}"))?;
        ensure!(!has_secret(&bytes), "a secret in {file}: {}", folder.display());
    }
    Ok(())
}
