/* Large messages: a memfd of the sender's, announced once, reused while it is warm.
 *
 *   slot    | count u64 | count lengths u64 | ... each part from a multiple of 64
 *
 * The sender may write a slot when the peer has consumed its descriptor (rx_head has passed it) and no pin names it. The
 * reader stores its pin before rx_head, so reading rx_head first and then each pin once can't miss one.
 */
#include "core.h"

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* From here on a message is larger than a core's share of the caches: lines that it is copied to need not be read first. */
enum { PAST_CACHES_FROM = 16 << 20 };

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static size_t table_bytes(uint32_t count) { return round_up(8 + (size_t)count * 8, 64); }

size_t eipc_slot_bytes(const eipc_part *parts, uint32_t count) {
    size_t bytes = table_bytes(count);
    for (uint32_t i = 0; i < count; i++) bytes += round_up(parts[i].bytes, 64);
    return bytes;
}

/* Copy to a multiple of 16 past the caches. glibc does that from a size on which it derives from what the processor says of its
 * caches, and virtual machines say 400 MB. */
static void copy_past_caches(uint8_t *to, const uint8_t *from, size_t bytes) {
#ifdef __SSE2__
    for (; bytes >= 64; bytes -= 64, to += 64, from += 64) {
        const __m128i *source = (const __m128i *)(const void *)from;
        __m128i *target = (__m128i *)(void *)to;
        __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
    _mm_sfence(); /* before the descriptor is committed */
#endif
    if (bytes) memcpy(to, from, bytes);
}

void eipc_slot_write(uint8_t *slot, const eipc_part *parts, uint32_t count) {
    uint64_t *table = (uint64_t *)(void *)slot;
    uint8_t *at = slot + table_bytes(count);
    bool past_caches = eipc_slot_bytes(parts, count) >= PAST_CACHES_FROM;
    table[0] = count;
    for (uint32_t i = 0; i < count; i++) {
        table[1 + i] = parts[i].bytes;
        if (past_caches) copy_past_caches(at, parts[i].data, parts[i].bytes);
        else if (parts[i].bytes) memcpy(at, parts[i].data, parts[i].bytes);
        at += round_up(parts[i].bytes, 64);
    }
}

int eipc_slot_open(eipc_map *map, eipc_message *out) {
    uint64_t count;
    memcpy(&count, map->addr, 8);
    if (count == 0 || count > EIPC_MAX_PARTS || table_bytes((uint32_t)count) > map->bytes) return EIPC_VIOLATION;
    out->map = map;
    out->count = (uint32_t)count;
    out->lengths = map->addr + 8;
    out->body = map->addr + table_bytes((uint32_t)count);
    out->room = map->bytes - table_bytes((uint32_t)count);
    out->align = 64;
    return EIPC_OK;
}

/* Up to an eighth more than needed, so that messages of similar sizes share a slot. */
size_t eipc_slot_size_for(size_t need) {
    size_t step = 64u << 10;
    while (step * 16 <= need) step *= 2;
    return round_up(need, step);
}

void eipc_slot_discard(eipc_slot *slot) {
    eipc_map_unref(slot->map); /* whoever still maps it keeps the memory; nobody writes it any more */
    slot->map = NULL;
}

int eipc_slot_renew(eipc_slot *slot, size_t need) {
    eipc_slot_discard(slot);
    int status = eipc_map_create(eipc_slot_size_for(need), &slot->map);
    if (status) return status;
    slot->map->generation = ++slot->generation;
    slot->consumed_at = 0;
    return EIPC_OK;
}

static uint64_t slots_in_use(eipc_link *link) {
    uint64_t pinned = 0;
    uint64_t head = atomic_load_explicit(&link->peer->rx_head, memory_order_seq_cst);
    for (int i = 0; i < EIPC_PINS; i++) {
        uint64_t pin = atomic_load_explicit(&link->peer->pins[i], memory_order_seq_cst);
        if (pin >= 1 && pin <= EIPC_SLOTS) pinned |= 1ull << (pin - 1);
    }
    for (int i = 0; i < EIPC_SLOTS; i++)
        if (link->tx_slots[i].map && link->tx_slots[i].consumed_at > head) pinned |= 1ull << i;
    return pinned;
}

/* The warmest free slot that is large enough; else a new one; else the coldest free one made anew, after as many other cold
 * ones were discarded as the budget asks for. -1: what is in use leaves no room. */
int eipc_slot_choose(eipc_slot *slots, int count, size_t need, uint64_t in_use, uint64_t budget_bytes, bool *renew, uint64_t *discarded) {
    size_t bytes = eipc_slot_size_for(need);
    for (;;) {
        int warm = -1, empty = -1, cold = -1;
        uint64_t held = 0, idle = 0;
        for (int i = 0; i < count; i++) {
            bool busy = in_use >> i & 1;
            if (!slots[i].map) {
                if (empty < 0 && !busy) empty = i; /* a view of one generation may keep the next from being announced in time */
                continue;
            }
            held += slots[i].map->bytes;
            if (busy) continue;
            idle += slots[i].map->bytes;
            if (slots[i].map->bytes >= need && (warm < 0 || slots[i].last_use > slots[warm].last_use)) warm = i;
            if (cold < 0 || slots[i].last_use < slots[cold].last_use) cold = i;
        }
        *renew = warm < 0;
        if (warm >= 0) return warm;
        if (empty >= 0 && held + bytes <= budget_bytes) return empty;
        if (cold < 0 || held - idle + bytes > budget_bytes) return -1;
        if (held - slots[cold].map->bytes + bytes <= budget_bytes) return cold;
        eipc_slot_discard(&slots[cold]);
        ++*discarded;
    }
}

/* For the counters: any thread may read those, but the table of slots is the sender's alone. */
static uint64_t held_bytes(const eipc_link *link) {
    uint64_t held = 0;
    for (int i = 0; i < EIPC_SLOTS; i++)
        if (link->tx_slots[i].map) held += link->tx_slots[i].map->bytes;
    return held;
}

static int acquire(eipc_link *link, size_t need, int64_t deadline_ns, int *chosen) {
    if (eipc_slot_size_for(need) > link->slot_budget_bytes) return EIPC_NO_MEMORY;
    for (;;) {
        bool renew;
        int i = eipc_slot_choose(link->tx_slots, EIPC_SLOTS, need, slots_in_use(link), link->slot_budget_bytes, &renew, &link->count.slots_discarded);
        if (i < 0) {
            int status;
            if (!eipc_link_wait_for_room(link, deadline_ns, &status)) return status;
            continue;
        }
        *chosen = i;
        if (!renew) return EIPC_OK;
        eipc_slot *slot = &link->tx_slots[i];
        if (slot->map) link->count.slots_discarded++;
        int status = eipc_slot_renew(slot, need);
        if (status) return status;
        link->count.slots_created++;
        link->count.slot_bytes = held_bytes(link);
        status = eipc_link_announce(link, -1, (uint32_t)i, slot->map);
        if (status) eipc_slot_discard(slot); /* the peer does not know it, so it must not be found warm */
        return status;
    }
}

int eipc_slot_send(eipc_link *link, const eipc_part *parts, uint32_t count, int64_t deadline_ns) {
    int i = 0;
    int status = acquire(link, eipc_slot_bytes(parts, count), deadline_ns, &i);
    if (status) return status;
    eipc_slot *slot = &link->tx_slots[i];
    eipc_slot_write(slot->map->addr, parts, count);
    slot->last_use = ++link->uses;
    return eipc_ring_send_descriptor(link, (uint32_t)i, slot->generation, deadline_ns);
}
