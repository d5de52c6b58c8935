// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Which packets leave the kernel early?
 *
 * Runs for every frame that a receive queue of the interface takes in, before the kernel has allocated
 * anything for it. A complete, plain UDP packet to our port on one of our addresses goes to the AF_XDP
 * socket (XSK) of the same queue. Whatever is not certainly that is passed, untouched, to the kernel: ARP,
 * SSH, other services, and also those of our own packets that only the kernel can handle (fragments, IP
 * options), which then reach the ordinary UDP socket on the same port. The program never drops and never
 * writes to a packet.
 *
 *     frame --> classify() --+-- redirected ----> xsks[receive queue] --> worker
 *                            |                      | no socket there
 *                            +-- anything else --> kernel stack
 *
 * Checksums are not verified: links with checksum offload (veth) leave UDP sums unfinished, NICs verify
 * on their own, and QUIC authenticates every packet.
 *
 * User space owns the maps: it fills `addresses` and `xsks`, and reads `counters`; this program only counts.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/*
 * What became of a frame; every frame is counted under exactly one. The Rust side takes these values from
 * the object's type information, so this is their only definition.
 */
enum outcome {
	OUTCOME_REDIRECTED,	/* to the XSK of its queue; all others are passed to the kernel */
	OUTCOME_NO_SOCKET,	/* ours, but no XSK is registered for the queue that it came in on */
	OUTCOME_NOT_IP,		/* neither IPv4 nor IPv6, by EtherType or by version field */
	OUTCOME_VLAN_DEPTH,	/* a second VLAN tag, or a service tag (802.1ad) */
	OUTCOME_OTHER_PROTOCOL,	/* IP, but not UDP */
	OUTCOME_IP_OPTIONS,	/* IPv4 options or IPv6 extension headers */
	OUTCOME_FRAGMENT,	/* first fragments too: the rest of the datagram is elsewhere */
	OUTCOME_TRUNCATED,	/* the frame ends before its headers do, or before the length they state */
	OUTCOME_BAD_LENGTH,	/* the IP and UDP length fields contradict each other */
	OUTCOME_OTHER_PORT,	/* UDP to a port that is not ours */
	OUTCOME_OTHER_ADDRESS,	/* our port, but not one of our addresses (forwarded, IP multicast) */
	OUTCOME_GROUP_FRAME,	/* our port, but an Ethernet broadcast or multicast frame */
	OUTCOMES,		/* how many there are */
};

/* linux/if_vlan.h does not offer this to user space. */
struct vlan_tag {
	__be16 control;
	__be16 ethertype; /* of what follows the tag */
};

#define IP_FRAGMENT_MASK 0x3fff /* more-fragments bit and 13 bits of offset; without don't-fragment */

/* UDP port, network byte order. User space sets it before it loads the object; constant from then on. */
const volatile __be16 port_be;

/* Read by nobody: a global of this type is what puts the enumeration into the object's type information. */
const volatile enum outcome outcomes = OUTCOMES;

/* Addresses that are ours; IPv4 as ::ffff:a.b.c.d. A hash set: the value means nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct in6_addr);
	__type(value, __u8);
	/*
	 * Twice what user space accepts (512; a host with more on one interface gets an error), since a
	 * replacement adds before it removes. Preallocated, about 100 KB; more would only cost memory.
	 */
	__uint(max_entries, 1024);
} addresses SEC(".maps");

/* The XSK of each receive queue. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	/* Placeholder: user space sets the number of queues before it loads the object. */
	__uint(max_entries, 1);
} xsks SEC(".maps");

/* Frames by outcome. Per CPU: queues on different cores never write to the same cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* enum outcome; the kernel wants an integer here */
	__type(value, __u64);
	__uint(max_entries, OUTCOMES);
} counters SEC(".maps");

/* `length`: bytes from the UDP header to the end of the packet, as the IP header has it; may be nonsense. */
static __always_inline enum outcome check_udp(const struct udphdr *udp, const void *end, __u32 length)
{
	if ((const void *)(udp + 1) > end)
		return OUTCOME_TRUNCATED;
	/* The port first: on a busy host it settles most foreign traffic with one comparison. */
	if (udp->dest != port_be)
		return OUTCOME_OTHER_PORT;
	__u32 udp_length = bpf_ntohs(udp->len);
	if (udp_length != length || udp_length < sizeof(*udp))
		return OUTCOME_BAD_LENGTH;
	/*
	 * Bytes after the packet are Ethernet padding and harmless; missing ones are not. This sum of a pointer
	 * and a variable is why loading takes CAP_PERFMON. The way without it, bpf_xdp_get_buff_len(), would
	 * take Linux 5.18 in place of 5.9.
	 */
	if ((const void *)udp + udp_length > end)
		return OUTCOME_TRUNCATED;
	return OUTCOME_REDIRECTED;
}

static __always_inline enum outcome check_ipv4(const struct iphdr *ip, const void *end,
					       struct in6_addr *destination)
{
	if ((const void *)(ip + 1) > end)
		return OUTCOME_TRUNCATED;
	if (ip->version != 4)
		return OUTCOME_NOT_IP;
	if (ip->protocol != IPPROTO_UDP)
		return OUTCOME_OTHER_PROTOCOL;
	if (ip->ihl != sizeof(*ip) / 4)
		return OUTCOME_IP_OPTIONS;
	if (ip->frag_off & bpf_htons(IP_FRAGMENT_MASK))
		return OUTCOME_FRAGMENT;
	/* A total length below the header's wraps to a value that no UDP length equals. */
	__u32 length = (__u32)bpf_ntohs(ip->tot_len) - sizeof(*ip);
	destination->s6_addr32[0] = 0;
	destination->s6_addr32[1] = 0;
	destination->s6_addr32[2] = bpf_htonl(0xffff);
	destination->s6_addr32[3] = ip->daddr;
	return check_udp((const void *)(ip + 1), end, length);
}

static __always_inline enum outcome check_ipv6(const struct ipv6hdr *ip, const void *end,
					       struct in6_addr *destination)
{
	if ((const void *)(ip + 1) > end)
		return OUTCOME_TRUNCATED;
	if (ip->version != 6)
		return OUTCOME_NOT_IP;
	switch (ip->nexthdr) {
	case IPPROTO_UDP:
		break;
	case IPPROTO_FRAGMENT:
		return OUTCOME_FRAGMENT;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
	case IPPROTO_AH:
	case IPPROTO_MH:
		return OUTCOME_IP_OPTIONS;
	default:
		return OUTCOME_OTHER_PROTOCOL;
	}
	*destination = ip->daddr;
	/* A jumbogram's payload length is 0 (RFC 2675), which counts as a contradiction. */
	return check_udp((const void *)(ip + 1), end, bpf_ntohs(ip->payload_len));
}

static __always_inline enum outcome classify(struct xdp_md *ctx)
{
	const void *data = (void *)(long)ctx->data;
	const void *end = (void *)(long)ctx->data_end;
	const struct ethhdr *ethernet = data;
	const void *network = ethernet + 1;
	struct in6_addr destination;
	enum outcome outcome;

	if (network > end)
		return OUTCOME_TRUNCATED;
	__be16 ethertype = ethernet->h_proto;
	if (ethertype == bpf_htons(ETH_P_8021Q)) {
		const struct vlan_tag *tag = network;
		network = tag + 1;
		if (network > end)
			return OUTCOME_TRUNCATED;
		ethertype = tag->ethertype;
	}

	if (ethertype == bpf_htons(ETH_P_IP)) {
		outcome = check_ipv4(network, end, &destination);
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		outcome = check_ipv6(network, end, &destination);
		/* On the wire ::ffff:a.b.c.d is nobody's address; as a key it would stand for IPv4's. */
		if (outcome == OUTCOME_REDIRECTED && destination.s6_addr32[0] == 0 &&
		    destination.s6_addr32[1] == 0 && destination.s6_addr32[2] == bpf_htonl(0xffff))
			outcome = OUTCOME_OTHER_ADDRESS;
	} else if (ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD)) {
		return OUTCOME_VLAN_DEPTH;
	} else {
		return OUTCOME_NOT_IP;
	}

	if (outcome != OUTCOME_REDIRECTED)
		return outcome;
	/* The group bit of the destination. A unicast packet inside such a frame is the kernel's to judge. */
	if (ethernet->h_dest[0] & 1)
		return OUTCOME_GROUP_FRAME;
	if (!bpf_map_lookup_elem(&addresses, &destination))
		return OUTCOME_OTHER_ADDRESS;
	return OUTCOME_REDIRECTED;
}

SEC("xdp")
int xdp_quic(struct xdp_md *ctx)
{
	enum outcome outcome = classify(ctx);
	int action = XDP_PASS;

	if (outcome == OUTCOME_REDIRECTED) {
		/* Without a socket, or with a queue beyond the map, the helper returns its flags. */
		action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
		if (action != XDP_REDIRECT)
			outcome = OUTCOME_NO_SOCKET;
	}
	__u32 key = outcome;
	__u64 *count = bpf_map_lookup_elem(&counters, &key);
	if (count)
		++*count;
	return action;
}

/* Needs no helper reserved for GPL programs, so it states the licence of the project. */
char LICENSE[] SEC("license") = "MIT OR Apache-2.0";
