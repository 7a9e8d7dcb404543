//! The `tracer` program; everything it does is in the library.
fn main() {
    let pids: Vec<u32> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let options = tracer::kernel::KernelOptions { names: vec!["nginx".into()], executables: vec![format!("/proc/{}/exe", pids[0]).into()], ..Default::default() };
    let mut k = tracer::kernel::Kernel::load(&options).unwrap();
    k.follow(pids).unwrap();
    k.adopt().unwrap();
    let mut d = tracer::event::decode::Decoder::default();
    d.drop_reasons = k.layout.drop_reasons.clone();
    d.reset_reasons = k.layout.reset_reasons.clone();
    let mut ring = k.take_ring().unwrap();
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for _ in 0..400 {
        ring.drain(100000, |b| { let e = d.decode(b); let s = format!("{e:?}"); let key = match &e { tracer::event::Event::Exchange(x) => format!("Exchange {} {:?} sent{} recv{} acc{}", x.peer, x.end, (x.sent>0) as u8, (x.received>0) as u8, x.backend.as_ref().map_or(9, |b| b.read.min(1))), _ => s.split([' ','(']).next().unwrap().to_owned() }; *counts.entry(key).or_default() += 1; });
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    println!("{counts:#?} {:?} in flight {:?}", k.losses(), k.in_flight());
}
