//! The hook plan is data: what we want to see, the ways to see it (best first), and what is lost without any.

use std::collections::BTreeSet;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// A BTF tracepoint by name.
    Tracepoint(&'static str),
    /// The entry of a kernel function.
    Fentry(&'static str),
    /// The return of a kernel function, with its arguments.
    Fexit(&'static str),
    /// The entry of a kernel function, by a breakpoint: for what may be missed now and then.
    Kprobe(&'static str),
    /// An iterator by name; it is run when a snapshot is taken.
    Iterator(&'static str),
    /// A uprobe on an exported function of nginx's executable.
    Uprobe(&'static str),
}

impl Attach {
    /// As `tracer check` prints it.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Tracepoint(name) => format!("tp_btf {name}"),
            Self::Fentry(name) => format!("fentry {name}"),
            Self::Fexit(name) => format!("fexit {name}"),
            Self::Kprobe(name) => format!("kprobe {name}"),
            Self::Iterator(name) => format!("iter {name}"),
            Self::Uprobe(name) => format!("uprobe {name}"),
        }
    }
}

/// One thing we want to see.
#[derive(Debug)]
pub struct Hook {
    /// Its stable id, for `--without` and in traces.
    pub sees: &'static str,
    /// What it shows, for people.
    pub shows: &'static str,
    /// What the user loses when no way works.
    pub without: &'static str,
    /// The tracer cannot run without it.
    pub required: bool,
    /// Ways, best first; a way is a set of (program, attach point), attached all or none.
    pub ways: &'static [&'static [(&'static str, Attach)]],
}

/// The kernel functions of the plan.
#[must_use]
pub fn functions() -> BTreeSet<&'static str> {
    PLAN.iter()
        .flat_map(|hook| hook.ways.iter().copied().flatten())
        .filter_map(|(_, attach)| match attach {
            Fentry(name) | Fexit(name) | Kprobe(name) => Some(*name),
            Tracepoint(_) | Iterator(_) | Uprobe(_) => None,
        })
        .collect()
}

use Attach::{Fentry, Fexit, Iterator, Kprobe, Tracepoint, Uprobe};

/// The hook whose success the programs are told.
pub const UNIX_CLOSES: &str = "unix-closes";

/// The hook that has no program of its own: those of `bytes` take the beginnings of requests and answers along.
pub const REQUESTS: &str = "requests";

/// The plan, in the order of attaching.
pub static PLAN: &[Hook] = &[
    Hook {
        sees: "processes",
        shows: "nginx's processes and the ends of backends",
        without: "processes that start later are not followed, and a crash is not told from a close",
        required: true,
        ways: &[&[
            ("process_forked", Tracepoint("sched_process_fork")),
            ("process_executed", Tracepoint("sched_process_exec")),
            ("process_exited", Tracepoint("sched_process_exit")),
        ]],
    },
    Hook {
        sees: "signals",
        shows: "who sent a deadly signal, who stopped a worker, and when nginx is told to reload",
        without: "a killed backend is named without the process that killed it, a stopped worker without the one that \
            stopped it, and after a reload upstreams are named from the configuration before it",
        required: false,
        ways: &[&[("signal_sent", Tracepoint("signal_generate"))]],
    },
    Hook {
        sees: "connections",
        shows: "TCP connections: begin, states, end, both ends on this host, listeners",
        without: "nothing can be traced",
        required: true,
        ways: &[&[
            ("socket_state", Tracepoint("inet_sock_set_state")),
            ("socket_destroyed", Tracepoint("tcp_destroy_sock")),
        ]],
    },
    Hook {
        sees: "bytes",
        shows: "requests on kept connections, what each side sent and read",
        without: "one attempt per connection, no times of request and response, no unix upstreams",
        required: false,
        ways: &[
            &[
                ("bytes_sent", Tracepoint("sock_send_length")),
                ("bytes_received", Tracepoint("sock_recv_length")),
            ],
            &[
                ("tcp_sent", Fexit("tcp_sendmsg")),
                ("tcp_page_sent", Fexit("tcp_sendpage")),
                ("tcp_received", Fexit("tcp_recvmsg")),
                ("unix_sent", Fexit("unix_stream_sendmsg")),
                ("unix_received", Fexit("unix_stream_recvmsg")),
            ],
            &[
                ("tcp_sent", Fexit("tcp_sendmsg")),
                ("tcp_received", Fexit("tcp_recvmsg")),
                ("unix_sent", Fexit("unix_stream_sendmsg")),
                ("unix_received", Fexit("unix_stream_recvmsg")),
            ],
            &[("tcp_data_read", Tracepoint("tcp_rcv_space_adjust"))],
        ],
    },
    Hook {
        sees: REQUESTS,
        shows: "method, path and Host of requests, and the status of their answers",
        without: "a request is known from nginx's own line only, and a backend that itself answers with an error is not \
            told from one that answers well",
        required: false,
        ways: &[],
    },
    Hook {
        sees: "unix-connects",
        shows: "when a unix upstream was connected",
        without: "a unix attempt begins at its first send",
        required: false,
        ways: &[
            &[("unix_connected", Tracepoint("sk_data_ready"))],
            &[("unix_connect_returned", Fexit("unix_stream_connect"))],
        ],
    },
    Hook {
        sees: UNIX_CLOSES,
        shows: "when nginx closes a unix upstream",
        without: "a unix attempt's end is known by the end of the stream, by a line, or by what follows",
        required: false,
        ways: &[&[("unix_released", Fentry("unix_release"))]],
    },
    Hook {
        sees: "connect-errno",
        shows: "connect() calls that fail at once",
        without: "a connect() that fails at once is known from nginx's own line only",
        required: false,
        ways: &[&[
            ("tcp_connect_returned", Fexit("inet_stream_connect")),
            ("unix_connect_failed", Fexit("unix_stream_connect")),
        ]],
    },
    Hook {
        sees: "connect-denials",
        shows: "who in the kernel denies nginx a connect()",
        without: "that a control group's program or a security module denied a connect() is known by its errno and what else \
            could have given it",
        required: false,
        ways: &[&[
            ("security_asked", Fexit("security_socket_connect")),
            ("cgroup_asked", Fexit("__cgroup_bpf_run_filter_sock_addr")),
        ]],
    },
    Hook {
        sees: "accept",
        shows: "when a backend of this host accepts a connection",
        without: "a backend's accept is known by its first read",
        required: false,
        ways: &[&[("connection_accepted", Fexit("inet_csk_accept"))]],
    },
    Hook {
        sees: "accept-queue",
        shows: "a full accept queue at the first SYN",
        without: "a full accept queue is read at the SYN's retransmission, or when nginx gives up",
        required: false,
        ways: &[
            &[("syn_answered", Fexit("tcp_conn_request"))],
            &[("syn_arrived", Kprobe("tcp_conn_request"))],
        ],
    },
    Hook {
        sees: "resets-received",
        shows: "resets that arrive",
        without: "a reset is known by its errno only",
        required: false,
        ways: &[&[("reset_received", Tracepoint("tcp_receive_reset"))]],
    },
    Hook {
        sees: "resets-sent",
        shows: "resets this host sends, and why",
        without: "a missing listener is not told from a firewall's reset",
        required: false,
        ways: &[&[("reset_sent", Tracepoint("tcp_send_reset"))]],
    },
    Hook {
        sees: "errors",
        shows: "errors reported to sockets, ICMP with its sender",
        without: "ICMP errors are read late, at nginx's close",
        required: false,
        ways: &[&[("error_reported", Tracepoint("inet_sk_error_report"))]],
    },
    Hook {
        sees: "retransmits",
        shows: "retransmissions of SYNs and data, accept queues when they happen",
        without: "silence is not told from slowness",
        required: false,
        ways: &[&[("retransmitted", Tracepoint("tcp_retransmit_skb"))]],
    },
    Hook {
        sees: "drops",
        shows: "packets of ours that this host drops, and why",
        without: "a local firewall is not told from a remote one",
        required: false,
        ways: &[&[("dropped", Tracepoint("kfree_skb"))]],
    },
    Hook {
        sees: "icmp-sent",
        shows: "ICMP errors this host sends",
        without: "a local reject rule is known by its drop only",
        required: false,
        ways: &[&[("icmp_sent", Tracepoint("icmp_send"))]],
    },
    Hook {
        sees: "routes",
        shows: "failed route lookups",
        without: "a forbidding route is known by its errno only",
        required: false,
        ways: &[
            &[
                ("route_looked_up", Tracepoint("fib_table_lookup")),
                ("route6_looked_up", Tracepoint("fib6_table_lookup")),
            ],
            &[("route_looked_up", Tracepoint("fib_table_lookup"))],
        ],
    },
    Hook {
        sees: "selinux",
        shows: "what SELinux denies to nginx's workers",
        without: "a connect() that SELinux denied is known by its errno only",
        required: false,
        ways: &[&[("selinux_audited", Tracepoint("selinux_audited"))]],
    },
    Hook {
        sees: "snapshot",
        shows: "listeners and connections that were there before",
        without: "what existed before the tracer is unknown to it",
        required: false,
        ways: &[&[
            ("sockets_snapshot", Iterator("task_file")),
            ("connections_adopted", Iterator("task_file")),
        ]],
    },
    Hook {
        sees: "nginx-log",
        shows: "nginx's own error lines at the moment it writes them",
        without: "failures inside connect(), bind() and socket() and answers that broke off are known from the error log \
            file only",
        required: false,
        ways: &[&[("nginx_logs", Uprobe("ngx_log_error_core"))]],
    },
];

/// The drop reasons worth a record; the rest is ordinary noise (final ACKs, purges) or about other protocols.
pub static WANTED_DROPS: &[&str] = &[
    "NO_SOCKET",
    "SOCKET_FILTER",
    "NETFILTER_DROP",
    "IP_RPFILTER",
    "XFRM_POLICY",
    "SOCKET_RCVBUFF",
    "SOCKET_BACKLOG",
    "IP_OUTNOROUTES",
    "BPF_CGROUP_EGRESS",
    "NEIGH_CREATEFAIL",
    "NEIGH_FAILED",
    "NEIGH_QUEUEFULL",
    "NEIGH_DEAD",
    "TC_EGRESS",
    "TC_INGRESS",
    "QDISC_DROP",
    "XDP",
    "CPU_BACKLOG",
    "DEV_READY",
    "FULL_RING",
    "NOMEM",
    "IP_INNOROUTES",
    "IP_LOCAL_SOURCE",
    "IP_INVALID_SOURCE",
    "IP_LOCALNET",
    "PKT_TOO_BIG",
    "TCP_LISTEN_OVERFLOW",
    "TCP_INVALID_SYN",
    "TCP_MD5NOTFOUND",
    "TCP_MD5FAILURE",
    "TCP_MINTTL",
];
