//! The files that say how names are looked up.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_hosts_file_gives_every_address_of_a_name() {
    let hosts =
        parse_hosts("127.0.0.1 localhost Api # x y\n::1\tlocalhost\nbad name\n#10.0.0.1 no\n10.0.0.1 api\n");
    assert_eq!(hosts["localhost"], [ip("127.0.0.1"), ip("::1")]);
    assert_eq!(hosts["api"], [ip("127.0.0.1"), ip("10.0.0.1")]);
    assert_eq!(hosts.len(), 2);
}

#[test]
fn the_order_of_services_is_the_configured_one() {
    let shown = |text: &str| {
        let steps = parse_switch(text).into_iter();
        let shown = steps.map(|step| {
            format!(
                "{}{}",
                step.service,
                if step.ends_when_not_found { "!" } else { "" }
            )
        });
        shown.collect::<Vec<_>>().join(" ")
    };
    for (line, expected) in [
        ("passwd: ldap\nhosts: files dns # x", "files dns"),
        (
            "hosts:\tfiles mdns4_minimal [NOTFOUND=return] dns",
            "files mdns4_minimal! dns",
        ),
        (
            "hosts: resolve [!UNAVAIL=return] files myhostname dns",
            "resolve! files myhostname dns",
        ),
        ("hosts: files[SUCCESS=continue] dns", "files dns"),
        ("hosts: files [!SUCCESS=return", "files!"),
        ("hosts: [NOTFOUND=return] files", "files"),
        ("passwd: files", "files dns"),
    ] {
        assert_eq!(shown(line), expected, "{line}");
    }
}

#[test]
fn a_service_with_nothing_to_say_is_passed_over() {
    assert!(never_knows("mdns4_minimal", "api.example"));
    assert!(!never_knows("mdns4_minimal", "api.local"));
    assert!(never_knows("myhostname", "api.example"));
    assert!(!never_knows("myhostname", "_gateway"));
    assert!(!never_knows("ldap", "api.example"));
}

#[test]
fn resolv_conf_is_read_as_the_c_library_reads_it() {
    let conf = ResolvConf::parse(
        "# nameserver 10.0.0.1\nnameserver 127.0.0.11\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver 10.0.0.3\n\
         nameserver 10.0.0.4\ndomain old.lab\nsearch ns.svc.cluster.local. lab\noptions ndots:5 timeout:1\n",
    );
    let expected = ResolvConf {
        servers: ["127.0.0.11", "::1", "10.0.0.3"].map(ip).into(),
        search: ["ns.svc.cluster.local.", "lab"].map(str::to_owned).into(),
        ndots: 5,
    };
    assert_eq!(conf, expected);
    assert_eq!(
        conf.candidates("api.other"),
        ["api.other.ns.svc.cluster.local", "api.other.lab", "api.other"]
    );
    assert_eq!(conf.candidates("api.other."), ["api.other"]);
    let bare = ResolvConf::parse("search lab\n");
    assert_eq!(bare.servers, [ip("127.0.0.1")]);
    assert_eq!(bare.candidates("api"), ["api.lab", "api"]);
    assert_eq!(bare.candidates("api.other"), ["api.other", "api.other.lab"]);
}

#[test]
fn nameservers_that_do_not_answer_are_given_up_in_time() {
    let silent: Vec<std::net::UdpSocket> = (0..2)
        .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket"))
        .collect();
    let servers: Vec<SocketAddr> = silent
        .iter()
        .map(|socket| socket.local_addr().expect("bound"))
        .collect();
    let began = Instant::now();
    let names = ["api.lab".to_owned(), "api".to_owned()];
    let error = ask_servers(&servers, &names, began + Duration::from_millis(200)).expect_err("silence");
    assert_eq!(error.to_string(), "nameserver 127.0.0.1: no answer in time");
    assert!(began.elapsed() < PER_SERVER, "{:?}", began.elapsed());
}
