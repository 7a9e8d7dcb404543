//! Packets of upstream connections that this host answered with a reset, freed, or answered with an ICMP error.

use aya_ebpf::{EbpfContext as _, macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_ebpf::{
    Conn, DROP_PLACES, DROP_REASONS, Happening, Packet, SYN_PLACES, WANTED_BY_PLACE, WANTED_OF_UDP, conn,
    kind,
};

use super::understudy::{of_first, with_understudy};
use crate::{
    exchange::edge,
    filter::{backend, connection, is_endpoint, worker},
    maps::{offset, setting},
    output::{header, now, write},
    sock::{
        LISTEN, NEW_SYN_RECV, SYN_SENT, Segment, Sock as _, SockAt, TIME_WAIT, Tcp as _, current_pid,
        current_task, datagram, read, segment, segment_seq, skb_netns,
    },
};

const SYN: u8 = 2;
const BY_NONE: u8 = 0;
const BY_LISTENER: u8 = 1;
const BY_TIME_WAIT: u8 = 2;
const BY_OTHER: u8 = 3;

#[inline(always)]
fn packet(what: u16, segment: &Segment) -> Packet {
    Packet {
        header: header(what, now()),
        location: 0,
        conn_sock: 0,
        conn_since: 0,
        saddr: segment.saddr,
        daddr: segment.daddr,
        sport: segment.sport,
        dport: segment.dport,
        netns: 0,
        reason: 0,
        tcp_flags: segment.flags,
        icmp_kind: 0,
        icmp_code: 0,
        by: BY_OTHER,
    }
}

#[inline(always)]
fn concerns_upstream(segment: &Segment) -> bool {
    is_endpoint(segment.daddr, segment.dport) || is_endpoint(segment.saddr, segment.sport)
}

/// The connection whose SYN this is, when the current worker's connect() has just sent it, whatever addresses it was given
/// on its way (containers): known by its sequence number. It gets back the address that the worker's socket has.
#[inline(always)]
fn connecting_with(skb: u64, segment: &mut Segment) -> Option<&'static mut Conn> {
    if segment.flags & SYN == 0 {
        return None;
    }
    let entry = connection(worker(current_pid())?.connecting)?;
    let sock = SockAt(entry.sock);
    if sock.state() != SYN_SENT || sock.snd_una() != segment_seq(skb) {
        return None;
    }
    segment.saddr = sock.local_addr();
    segment.sport = sock.bound_port();
    Some(entry)
}

/// A record of a packet, when it concerns an upstream.
#[inline(always)]
fn packet_of_upstream(what: u16, skb: u64, segment: &mut Segment) -> Option<Packet> {
    let connecting = connecting_with(skb, segment);
    if connecting.is_none() && !concerns_upstream(segment) {
        return None;
    }
    let mut record = packet(what, segment);
    record.netns = skb_netns(skb);
    if let Some(entry) = connecting {
        record.conn_sock = entry.sock;
        record.conn_since = entry.since;
    }
    Some(record)
}

with_understudy!(
    btf_tracepoint(function = "tcp_send_reset"),
    BtfTracePointContext,
    RESET_SENT,
    /// `trace_tcp_send_reset(const struct sock *sk, const struct sk_buff *skb, const enum sk_rst_reason reason)` from
    /// 6.10; before, only `(sk, skb)` and never without a socket.
    reset_sent,
    [reset_sent_nested, reset_sent_nested2, reset_sent_nested3],
    of_both,
    on_reset_sent
);

#[inline(always)]
fn of_both(ctx: &BtfTracePointContext) -> Happening {
    // Either may be null.
    Happening {
        object: read(ctx.as_ptr() as u64, 0),
        what: read::<u32>(ctx.as_ptr() as u64, 8),
    }
}

#[inline(always)]
fn on_reset_sent(ctx: &BtfTracePointContext) {
    // Both pointers may be null, and the verifier lets nobody calculate with such a pointer before a check that the
    // compiler moves ("R3 pointer arithmetic on trusted_ptr_or_null_ prohibited"); read as numbers they are free.
    let sock = SockAt(read(ctx.as_ptr() as u64, 0));
    let skb: u64 = read(ctx.as_ptr() as u64, 8);
    let reason = if setting!(reset_has_reason) != 0 {
        ctx.arg::<u32>(2) + 1
    } else {
        0
    };
    if sock.0 != 0 {
        let state = sock.state();
        if state != LISTEN && state != TIME_WAIT && state != NEW_SYN_RECV {
            if let Some(link) = backend(sock.0) {
                edge(link, sock, reason, 0, current_task(), now());
            }
            return;
        }
        let by = if state == TIME_WAIT {
            BY_TIME_WAIT
        } else {
            BY_LISTENER
        };
        answered(skb, sock.netns(), reason, by);
        return;
    }
    answered(skb, skb_netns(skb), reason, BY_NONE);
}

#[inline(always)]
fn answered(skb: u64, netns: u32, reason: u32, by: u8) {
    if skb == 0 {
        return;
    }
    if let Some(mut offending) = segment(skb)
        && let Some(mut record) = packet_of_upstream(kind::RESET_SENT, skb, &mut offending)
    {
        record.netns = netns;
        record.reason = reason;
        record.by = by;
        write(&record);
    }
}

with_understudy!(
    btf_tracepoint(function = "kfree_skb"),
    BtfTracePointContext,
    DROPPED,
    /// `trace_kfree_skb(struct sk_buff *skb, void *location, enum skb_drop_reason reason, struct sock *rx_sk)`; the
    /// reason from 5.17, rx_sk from 6.11.
    dropped,
    [dropped_nested, dropped_nested2, dropped_nested3],
    of_first,
    on_dropped
);

#[inline(always)]
fn on_dropped(ctx: &BtfTracePointContext) {
    let mut reason = 0;
    if setting!(drop_has_reason) != 0 {
        let number = ctx.arg::<u32>(2);
        // SAFETY: the index is inside the array.
        let wanted = unsafe {
            core::ptr::read_volatile(
                (&raw const crate::maps::SETTINGS.drop_wanted)
                    .cast::<u8>()
                    .add(number as usize & (DROP_REASONS - 1)),
            )
        };
        if wanted == 0 || (wanted == WANTED_BY_PLACE && drop_place(ctx.arg::<u64>(1)).is_none()) {
            return;
        }
        reason = number + 1;
        if datagram_dropped(ctx, reason) || wanted == WANTED_OF_UDP {
            return;
        }
    }
    let mut syn_only = false;
    if setting!(drop_has_reason) == 0 {
        match drop_place(ctx.arg::<u64>(1)) {
            Some(place) => syn_only = place < SYN_PLACES,
            None => return,
        }
    }
    let skb = ctx.arg::<u64>(0);
    let Some(mut freed) = segment(skb) else { return };
    if syn_only && freed.flags & SYN == 0 {
        return;
    }
    let Some(mut record) = packet_of_upstream(kind::DROPPED, skb, &mut freed) else {
        return;
    };
    record.reason = reason;
    record.location = ctx.arg::<u64>(1);
    let owner: u64 = read(skb, offset!(skb_sk));
    if owner != 0
        && let Some(entry) = connection(owner)
        && entry.flags & conn::MARKED == 0
    {
        record.conn_sock = entry.sock;
        record.conn_since = entry.since;
        if record.netns == 0 {
            record.netns = entry.netns;
        }
    }
    write(&record);
}

/// Tells of a datagram to a peer of a UDP proxy's, where the kernel gives reasons; whether the packet is UDP's.
#[inline(always)]
fn datagram_dropped(ctx: &BtfTracePointContext, reason: u32) -> bool {
    let skb = ctx.arg::<u64>(0);
    let Some(freed) = datagram(skb) else {
        return false;
    };
    if !is_endpoint(freed.daddr, freed.dport) {
        return true;
    }
    let mut record = packet(kind::DATAGRAM_DROPPED, &freed);
    record.reason = reason;
    record.location = ctx.arg::<u64>(1);
    record.netns = skb_netns(skb);
    let owner: u64 = read(skb, offset!(skb_sk));
    if record.netns == 0 && owner != 0 {
        record.netns = SockAt(owner).netns();
    }
    write(&record);
    true
}

/// Which of [`DROP_PLACES`] this return address lies in.
#[inline(always)]
fn drop_place(location: u64) -> Option<usize> {
    let places = setting!(drop_places);
    (0..DROP_PLACES.len()).find(|n| location > places[2 * n] && location <= places[2 * n + 1])
}

with_understudy!(
    btf_tracepoint(function = "icmp_send"),
    BtfTracePointContext,
    ICMP_SENT,
    /// `trace_icmp_send(const struct sk_buff *skb, int type, int code)`, 6.11 to 7.2 (and in some older kernels): an
    /// ICMPv4 error that this host generates for `skb`.
    icmp_sent,
    [icmp_sent_nested, icmp_sent_nested2, icmp_sent_nested3],
    of_first,
    on_icmp_sent
);

#[inline(always)]
fn on_icmp_sent(ctx: &BtfTracePointContext) {
    let skb = ctx.arg::<u64>(0);
    if let Some(mut offending) = segment(skb)
        && let Some(mut record) = packet_of_upstream(kind::ICMP_SENT, skb, &mut offending)
    {
        record.icmp_kind = ctx.arg::<i32>(1) as u8;
        record.icmp_code = ctx.arg::<i32>(2) as u8;
        write(&record);
    }
}
