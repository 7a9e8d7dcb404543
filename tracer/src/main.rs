//! The `tracer` program; everything it does is in the library.
fn main() {
    let options = tracer::kernel::KernelOptions {
        names: vec!["nginx".into()],
        ..Default::default()
    };
    let t = std::time::Instant::now();
    match tracer::kernel::Kernel::load(&options) {
        Ok(k) => {
            for s in k.status() {
                println!("{} {:?} {:?}", s.sees, s.how, s.why_not);
            }
            println!("{:?} {:?}", t.elapsed(), k.layout.offsets);
        }
        Err(e) => println!("{e:?}"),
    }
}
