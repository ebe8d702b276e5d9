// What Forebay does with a plain IPv4 packet, once more in C: VIP, flow hash, row, node, MAC rewrite or UDP form, counters.
//
// `cargo xtask bench l4` builds this with clang and measures it beside the Rust program, in the same run, behind the same wrapper and on
// the same maps. It is a yardstick and nothing else: IPv6, VLAN tags, options, fragments, ICMP, sockets and rows in transition are
// passed on unseen. `layout.h` is written by the benchmark from the layouts of `gateway-common`; where they differ from what stands
// here, this does not compile.

#include "layout.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define BE16(x) ((u16)__builtin_bswap16(x))
#define SIZE(type, size) _Static_assert(sizeof(type) == (size), #type)
#define AT(type, field, offset) _Static_assert(__builtin_offsetof(type, field) == (offset), #type "." #field)

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};
enum { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX };

static void *(*const lookup)(const void *map, const void *key) = (void *)1;
static u32 (*const processor)(void) = (void *)8;
static long (*const redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*const adjust_head)(struct xdp_md *ctx, int delta) = (void *)44;
static long (*const adjust_tail)(struct xdp_md *ctx, int delta) = (void *)65;

// The tables of Forebay.

struct config {
	u32 abi_version, self_index, vip_half, node_half, fingerprint, flags;
	u16 tunnel_port, probe_port;
	u32 beat_limit, trace, window, vip_seed[2];
	u64 hash_key[2];
	u32 tunnel_source[4];
	u64 probe_key[2], probe_key_previous[2];
	u32 syn_limit, too_big_limit, hop_limit, padding;
	u64 own_macs[4];
	u16 vlans[4];
	u64 reserved;
};
SIZE(struct config, CONFIG_SIZE);
AT(struct config, hash_key, CONFIG_HASH_KEY);
AT(struct config, tunnel_source, CONFIG_TUNNEL_SOURCE);

struct vip {
	u64 high, low;
	u32 last, flags;
	u16 group, number, sources, reserved;
};
SIZE(struct vip, VIP_SIZE);
AT(struct vip, flags, VIP_FLAGS);
AT(struct vip, number, VIP_NUMBER);
AT(struct vip, sources, VIP_SOURCES);

struct node {
	u32 address[4], macs[3], ifindex, flags;
	u16 by_address, by_mac, mtu, vlan;
	u32 reserved;
};
SIZE(struct node, NODE_SIZE);
AT(struct node, macs, NODE_MAC);
AT(struct node, flags, NODE_FLAGS);
AT(struct node, by_mac, NODE_BY_MAC);

#define ARRAY(name, value_type, entries, mode) \
	struct { \
		int (*type)[2]; \
		u32 *key; \
		value_type *value; \
		int (*max_entries)[entries]; \
		int (*map_flags)[mode]; \
	} name SEC(".maps")
#define MMAPABLE 1024

ARRAY(CONFIG, struct config, 1, MMAPABLE);
ARRAY(ROWS, u64, ROW_COUNT, MMAPABLE);
ARRAY(VIPS, struct vip, 2 * VIP_SLOTS, MMAPABLE);
ARRAY(NODES, struct node, 2 * MAX_NODES, MMAPABLE);
ARRAY(ALIVE, u64, MAX_NODES, MMAPABLE);
ARRAY(COUNTERS, u64, (MAX_CPUS + 1) * COUNTERS_PER_CPU, MMAPABLE);

struct words { u64 word[8]; };
struct template { u64 word[13]; };
ARRAY(BENCH, struct words, 1, 0);
ARRAY(TEMPLATE, struct template, 1, 0);

// Headers, in network order.

struct ethernet {
	u16 destination[3], source[3], kind;
};
struct ipv4 {
	u8 version_ihl, tos;
	u16 length, identification, fragment;
	u8 ttl, protocol;
	u16 checksum;
	u32 source, destination;
};
struct ports {
	u16 source, destination;
};
struct tcp {
	struct ports ports;
	u32 sequence, acknowledgment;
	u8 offset, flags;
	u16 window, checksum, urgent;
};
struct udp {
	struct ports ports;
	u16 length, checksum;
};
struct outer {
	struct ipv4 ip;
	struct udp udp;
	u8 version_hops, phase;
	u16 zero;
	u32 fingerprint;
};
SIZE(struct outer, 36);

#define DATA(ctx) ((void *)(long)(ctx)->data)
#define END(ctx) ((void *)(long)(ctx)->data_end)

INLINE void count(u32 slot)
{
	u32 cpu = processor();
	u32 key = (cpu < MAX_CPUS ? cpu : MAX_CPUS - 1) * COUNTERS_PER_CPU + slot;
	u64 *word = lookup(&COUNTERS, &key);

	if (word)
		++*word;
}

INLINE int counted(int action, u32 slot)
{
	count(slot);
	return action;
}

#define ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))
#define ROUND(a, b, c, d) do { \
	a += b; b = ROTATE(b, 13) ^ a; a = ROTATE(a, 32); \
	c += d; d = ROTATE(d, 16) ^ c; \
	a += d; d = ROTATE(d, 21) ^ a; \
	c += b; b = ROTATE(b, 17) ^ c; c = ROTATE(c, 32); \
} while (0)

// SipHash-1-3 of 13 bytes: two addresses, two ports, protocol.
INLINE u64 flow_hash(const struct config *config, u64 addresses, u64 last)
{
	u64 a = config->hash_key[0] ^ 0x736f6d6570736575, b = config->hash_key[1] ^ 0x646f72616e646f6d;
	u64 c = config->hash_key[0] ^ 0x6c7967656e657261, d = config->hash_key[1] ^ 0x7465646279746573;

	d ^= addresses; ROUND(a, b, c, d); a ^= addresses;
	d ^= last; ROUND(a, b, c, d); a ^= last;
	c ^= 0xff;
	ROUND(a, b, c, d); ROUND(a, b, c, d); ROUND(a, b, c, d);
	return a ^ b ^ c ^ d;
}

#define MIX_A 0xbf58476d1ce4e5b9
#define MIX_B 0x94d049bb133111eb

INLINE struct vip *find_vip(const struct config *config, u64 low, u32 last)
{
	u32 half = config->vip_half & 1;
	u64 hash = (low ^ (last | (u64)config->vip_seed[half] << 32)) * MIX_A;
	u32 first;

	hash ^= hash >> 32;
	first = hash * MIX_B >> 48;
	for (u32 probe = 0; probe < VIP_PROBES; probe++) {
		u32 slot = half * VIP_SLOTS + ((first + probe) & (VIP_SLOTS - 1));
		struct vip *vip = lookup(&VIPS, &slot);

		if (!vip || !(vip->flags & VIP_USED))
			return 0;
		if (!(vip->high | (vip->low ^ low) | (vip->last ^ last)))
			return vip;
	}
	return 0;
}

INLINE struct node *node(const struct config *config, u32 slot)
{
	u32 key = (config->node_half & 1) * MAX_NODES + slot;

	return lookup(&NODES, &key);
}

// Whether a peer may have sent this: the first slot of its source MAC names somebody.
INLINE int from_peer(const struct config *config, const struct ethernet *ethernet)
{
	u64 mac = ethernet->source[0] | (u64)ethernet->source[1] << 16 | (u64)ethernet->source[2] << 32;
	struct node *slot;

	mac = (mac ^ mac >> 30) * MIX_A;
	mac = (mac ^ mac >> 27) * MIX_B;
	slot = node(config, (u32)(mac ^ mac >> 31) & (MAX_NODES - 1));
	return slot && slot->by_mac;
}

// Whether the frame is for this machine; as the bench, without looking at further MACs than the first.
INLINE int for_us(const struct config *config, const struct ethernet *ethernet)
{
	u64 own = config->own_macs[0];
	const u16 *to = ethernet->destination;

	return !own || own == (to[0] | (u64)to[1] << 16 | (u64)to[2] << 32);
}

INLINE u16 folded(u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (u16)~((sum & 0xffff) + (sum >> 16));
}

// Takes the TTL down by one (RFC 1624).
INLINE void age(struct ipv4 *ip)
{
	u16 before = ip->ttl | ip->protocol << 8, after = (u8)(ip->ttl - 1) | ip->protocol << 8;
	u32 sum = (u16)~ip->checksum + (u16)~before + after;

	ip->ttl--;
	sum = (sum & 0xffff) + (sum >> 16);
	ip->checksum = (u16)~((sum & 0xffff) + (sum >> 16));
}

INLINE int out(const struct xdp_md *ctx, u32 ifindex, u32 slot)
{
	return counted(ifindex == ctx->ingress_ifindex ? XDP_TX : (int)redirect(ifindex, 0), slot);
}

INLINE int encapsulate(struct xdp_md *ctx, const struct config *config, const struct node *to, u32 owner, u16 length, u8 tos, u64 hash)
{
	struct ethernet *ethernet;
	struct outer *outer;
	u32 *macs, *words;
	u64 sum = 0;

	if (adjust_head(ctx, -(int)sizeof(*outer)))
		return counted(XDP_DROP, COUNTER_ADJUST_FAILED);
	ethernet = DATA(ctx);
	outer = (void *)(ethernet + 1);
	if ((void *)(outer + 1) > END(ctx))
		return counted(XDP_DROP, COUNTER_ADJUST_FAILED);
	macs = (void *)ethernet;
	macs[0] = to->macs[0];
	macs[1] = to->macs[1];
	macs[2] = to->macs[2];
	ethernet->kind = BE16(0x0800);
	outer->ip = (struct ipv4){
		.version_ihl = 0x45, .tos = tos, .length = BE16(length + sizeof(*outer)), .fragment = BE16(0x4000), .ttl = 64,
		.protocol = 17, .source = config->tunnel_source[3], .destination = to->address[3],
	};
	words = (void *)outer;
	for (int i = 0; i < 5; i++)
		sum += words[i];
	outer->ip.checksum = folded(sum);
	outer->udp = (struct udp){
		.ports = { BE16(0xc000 | (hash >> 16 & 0x3fff)), config->tunnel_port }, .length = BE16(length + 16),
	};
	outer->version_hops = 0x13;
	outer->phase = 0;
	outer->zero = 0;
	outer->fingerprint = __builtin_bswap32(config->fingerprint);
	return out(ctx, to->ifindex, CELL_UDP + owner * PATHS);
}

INLINE int forward(struct xdp_md *ctx, const struct config *config, u32 owner, u64 hash)
{
	struct ethernet *ethernet = DATA(ctx);
	struct ipv4 *ip = (void *)(ethernet + 1);
	struct node *to = owner < MAX_NODES ? node(config, owner) : 0;
	u32 *macs = (void *)ethernet;
	int rewrites;
	u16 length;
	u8 tos;

	if ((void *)(ip + 1) > END(ctx) || !to || (to->flags & (NODE_LISTED | NODE_RESOLVED)) != (NODE_LISTED | NODE_RESOLVED))
		return counted(XDP_DROP, COUNTER_NEIGHBOUR_UNRESOLVED);
	if (ip->ttl <= 1)
		return counted(XDP_DROP, COUNTER_TTL_SPENT);
	rewrites = (to->flags & (NODE_ON_LINK | NODE_ENCAPSULATE)) == NODE_ON_LINK && !(config->flags & ENCAP_ALWAYS) && !to->vlan && !from_peer(config, ethernet);
	length = BE16(ip->length);
	tos = ip->tos;
	if (to->mtu && length + (rewrites ? 0 : sizeof(struct outer)) > to->mtu)
		return counted(XDP_DROP, COUNTER_TOO_BIG);
	age(ip);
	if (!rewrites)
		return encapsulate(ctx, config, to, owner, length, tos, hash);
	macs[0] = to->macs[0];
	macs[1] = to->macs[1];
	macs[2] = to->macs[2];
	return out(ctx, to->ifindex, CELL_L2 + owner * PATHS);
}

// Whether lengths fit together, and whether it is a SYN: -1, 0, 1.
INLINE int whole(const struct xdp_md *ctx, const struct ethernet *ethernet, const struct ipv4 *ip)
{
	const void *end = END(ctx), *payload = ip + 1;
	u32 length = BE16(ip->length);

	if ((u32)(ctx->data_end - ctx->data) < sizeof(*ethernet) + length)
		return -1;
	if (ip->protocol == 6) {
		const struct tcp *tcp = payload;

		if ((void *)(tcp + 1) > end || tcp->offset >> 4 < 5 || length < sizeof(*ip) + (tcp->offset >> 4) * 4)
			return -1;
		return (tcp->flags & 0x12) == 2;
	} else {
		const struct udp *udp = payload;

		if ((void *)(udp + 1) > end || BE16(udp->length) < sizeof(*udp) || length < sizeof(*ip) + BE16(udp->length))
			return -1;
		return 0;
	}
}

static __attribute__((noinline)) int decide(struct xdp_md *ctx)
{
	struct ethernet *ethernet = DATA(ctx);
	struct ipv4 *ip = (void *)(ethernet + 1);
	u32 zero = 0, row_key, owner, ports, syn;
	struct config *config = lookup(&CONFIG, &zero);
	struct vip *vip;
	u64 hash, *row, *suspect;
	int state;

	if (!config || config->abi_version != ABI_VERSION || !config->self_index)
		return counted(XDP_PASS, COUNTER_NOT_CONFIGURED);
	if ((void *)(ip + 1) > END(ctx) || ethernet->kind != BE16(0x0800) || ethernet->destination[0] & 1)
		return counted(XDP_PASS, COUNTER_NOT_OURS);
	if (ip->version_ihl != 0x45 || ip->fragment & BE16(0x3fff) || (ip->protocol != 6 && ip->protocol != 17))
		return counted(XDP_PASS, COUNTER_NOT_OURS);
	if ((void *)(ip + 1) + sizeof(ports) > END(ctx))
		return counted(XDP_PASS, COUNTER_NOT_OURS);
	ports = *(u32 *)(ip + 1);
	if (ip->protocol == 17 && ip->destination == config->tunnel_source[3] && ports >> 16 == config->tunnel_port)
		return counted(XDP_PASS, COUNTER_NOT_UNDERSTOOD);
	vip = find_vip(config, 0xffff0000 | (u64)ip->destination << 32, ports >> 16 | (u32)ip->protocol << 16);
	if (!vip)
		return counted(XDP_PASS, COUNTER_NOT_OURS);
	state = whole(ctx, ethernet, ip);
	if (state < 0)
		return counted(XDP_DROP, COUNTER_TRUNCATED);
	syn = state > 0;
	if (!for_us(config, ethernet))
		return counted(XDP_PASS, COUNTER_OTHER_HOST);
	if (config->trace)
		return counted(XDP_PASS, COUNTER_NOT_UNDERSTOOD);
	if (vip->sources || vip->flags & (VIP_LOCAL_ONLY | VIP_SHARED | VIP_DRAINING | VIP_BY_ADDRESSES))
		return counted(XDP_PASS, COUNTER_NOT_UNDERSTOOD);
	hash = flow_hash(config, ip->source | (u64)ip->destination << 32, ports | (u64)ip->protocol << 32 | 13ULL << 56);
	row_key = hash & (ROW_COUNT - 1);
	row = lookup(&ROWS, &row_key);
	if (!row)
		return counted(XDP_PASS, COUNTER_NOT_UNDERSTOOD);
	owner = *row & 0x7fff;
	if (owner == config->self_index) {
		int plain = !syn && !(*row & 0x8000) && !(config->flags & DRAINING) && !config->beat_limit;

		return counted(XDP_PASS, plain ? CELL_VIP_OWNED + vip->number : COUNTER_NOT_UNDERSTOOD);
	}
	suspect = lookup(&ALIVE, &owner);
	if (!owner || *row & 0x8000800080000000 || !suspect || *suspect & VIEW_SUSPECT)
		return counted(XDP_PASS, COUNTER_NOT_UNDERSTOOD);
	count(CELL_VIP_OTHER + vip->number);
	return forward(ctx, config, owner, hash);
}

// The wrapper, as in `gateway-ebpf/src/measure.rs`.

enum { LENGTH, ACTION, ODD, FLOW, FLOWS, AT_BYTE, CLIENT, START };

INLINE int restore(struct xdp_md *ctx, volatile u64 *words)
{
	u32 zero = 0;
	struct template *template;
	u64 before = words[START];
	int moved, grown;
	u8 *data;

	words[START] = (u64)DATA(ctx);
	moved = (int)(before - words[START]);
	if (moved && adjust_head(ctx, moved))
		return 0;
	grown = (int)words[LENGTH] - (int)(END(ctx) - DATA(ctx));
	if (grown && adjust_tail(ctx, grown))
		return 0;
	template = lookup(&TEMPLATE, &zero);
	if (!template)
		return 0;
	data = DATA(ctx);
	for (int i = 0; i < 13; i++) {
		if ((void *)(data + 8 * i + 8) > END(ctx))
			break;
		*(u64 *)(data + 8 * i) = template->word[i];
	}
	if (words[FLOWS] > 1) {
		u64 flow = words[FLOW] + 1;
		u8 *at = data + (words[AT_BYTE] & 1023);

		flow = flow < words[FLOWS] ? flow : 0;
		words[FLOW] = flow;
		if ((void *)(at + 4) > END(ctx))
			return 0;
		*(u32 *)at = __builtin_bswap32((u32)(words[CLIENT] | flow));
	}
	return 1;
}

INLINE int measured(struct xdp_md *ctx, int (*what)(struct xdp_md *))
{
	u32 zero = 0;
	volatile u64 *words = lookup(&BENCH, &zero);
	int action;

	if (!words)
		return XDP_ABORTED;
	words[START] = (u64)DATA(ctx);
	action = what(ctx);
	if (!restore(ctx, words) || words[ACTION] != (u64)action)
		words[ODD] += 1;
	return action;
}

static __attribute__((noinline)) int nothing(struct xdp_md *ctx)
{
	return ctx->data == ctx->data_end ? XDP_ABORTED : XDP_PASS;
}

static __attribute__((noinline)) int push(struct xdp_md *ctx)
{
	return adjust_head(ctx, -(int)sizeof(struct outer)) ? XDP_ABORTED : XDP_TX;
}

SEC("xdp") int c_stub(struct xdp_md *ctx)
{
	return measured(ctx, nothing);
}

SEC("xdp") int c_push(struct xdp_md *ctx)
{
	return measured(ctx, push);
}

SEC("xdp") int c_decide(struct xdp_md *ctx)
{
	return measured(ctx, decide);
}

SEC("xdp") int c_forward(struct xdp_md *ctx)
{
	return decide(ctx);
}

char _license[] SEC("license") = "Dual MIT/GPL";
