/* Messages in a ring: one writer, one reader, records that are never split.
 *
 *   record  | bytes u32 | kind u16 | count u16 | sequence u64 | payload ...            | to a multiple of 64
 *   DATA      payload = count lengths u32, then the parts, each from a multiple of 8
 *   DESC      payload = slot u32, generation u32: the message lies in that slot
 *   PAD       no payload: the next record begins at offset 0
 *
 * The writer stores tx_tail after the record is whole; the reader stores rx_head after it has copied or pinned. Both stores,
 * and the loads of the other side's sleeping epoch that follow them, are seq_cst: either the sleeper sees the new index before
 * it sleeps, or the other side sees that it sleeps and rings.
 */
#include "core.h"

#include <string.h>

enum { KIND_PAD = 1, KIND_DATA = 2, KIND_DESC = 3 };

typedef struct {
    uint32_t bytes;
    uint16_t kind, count;
    uint64_t sequence;
} record;

#ifdef EIPC_TEST_WEAKEN_COMMIT /* the tests prove that ThreadSanitizer sees this */
#define COMMIT_ORDER memory_order_relaxed
#else
#define COMMIT_ORDER memory_order_seq_cst
#endif

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) & ~(to - 1); }

static int reserve(eipc_link *link, uint64_t payload_bytes, uint16_t kind, uint16_t count, int64_t deadline_ns, uint8_t **payload) {
    uint64_t need = round_up(sizeof(record) + payload_bytes, 64);
    uint64_t at = link->tx_tail & (link->tx_capacity - 1), left = link->tx_capacity - at;
    uint64_t pad = need > left ? left : 0;
    while (link->tx_tail + pad + need - link->tx_head_seen > link->tx_capacity) {
        uint64_t head = atomic_load_explicit(&link->peer->rx_head, memory_order_seq_cst);
        if (head < link->tx_head_seen || head > link->tx_tail) return eipc_link_violation(link);
        if (head != link->tx_head_seen) {
            link->tx_head_seen = head;
            continue;
        }
        int status;
        if (!eipc_link_wait_for_room(link, deadline_ns, &status)) return status;
    }
    if (pad) {
        record filler = {(uint32_t)pad, KIND_PAD, 0, 0};
        memcpy(link->tx_ring + at, &filler, sizeof filler);
        at = 0;
    }
    record header = {(uint32_t)need, kind, count, link->tx_sequence};
    memcpy(link->tx_ring + at, &header, sizeof header);
    *payload = link->tx_ring + at + sizeof header;
    link->tx_reserved = link->tx_tail + pad + need;
    return EIPC_OK;
}

static void commit(eipc_link *link) {
    link->tx_sequence++;
    link->tx_tail = link->tx_reserved;
    atomic_store_explicit(&link->me->tx_tail, link->tx_tail, COMMIT_ORDER);
    eipc_link_ring_if_parked(link);
}

static int send_in_ring(eipc_link *link, const eipc_part *parts, uint32_t count, uint64_t payload_bytes, int64_t deadline_ns) {
    uint8_t *payload;
    int status = reserve(link, payload_bytes, KIND_DATA, (uint16_t)count, deadline_ns, &payload);
    if (status) return status;
    uint8_t *at = payload + round_up((uint64_t)count * 4, 8);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bytes = (uint32_t)parts[i].bytes;
        memcpy(payload + (size_t)i * 4, &bytes, 4);
        if (bytes) memcpy(at, parts[i].data, bytes);
        at += round_up(bytes, 8);
    }
    commit(link);
    return EIPC_OK;
}

int eipc_ring_send_descriptor(eipc_link *link, uint32_t slot, uint32_t generation, int64_t deadline_ns) {
    uint32_t descriptor[2] = {slot, generation};
    uint8_t *payload;
    int status = reserve(link, sizeof descriptor, KIND_DESC, 0, deadline_ns, &payload);
    if (status) return status;
    memcpy(payload, descriptor, sizeof descriptor);
    link->tx_slots[slot].consumed_at = link->tx_reserved;
    commit(link);
    return EIPC_OK;
}

int eipc_send(eipc_link *link, const eipc_part *parts, uint32_t count, int64_t deadline_ns) {
    if (link->forks != eipc_fork_count()) return EIPC_FORKED;
    if (atomic_load_explicit(&link->closed, memory_order_relaxed)) return EIPC_CLOSED;
    if (atomic_load_explicit(&link->violated, memory_order_relaxed)) return EIPC_VIOLATION;
    if (atomic_load_explicit(&link->gone, memory_order_relaxed)) return EIPC_GONE;
    if (count == 0 || count > EIPC_MAX_PARTS) return EIPC_TOO_LARGE;
    uint64_t bytes = 0, payload_bytes = round_up((uint64_t)count * 4, 8);
    for (uint32_t i = 0; i < count; i++) {
        bytes += parts[i].bytes;
        payload_bytes += round_up(parts[i].bytes, 8);
    }
    if (bytes > link->max_message_bytes) return EIPC_TOO_LARGE;
    int status = sizeof(record) + payload_bytes <= link->tx_capacity / 4
                     ? send_in_ring(link, parts, count, payload_bytes, deadline_ns)
                     : eipc_slot_send(link, parts, count, deadline_ns);
    eipc_link_stop_waiting(link);
    if (status == EIPC_OK) {
        link->count.messages_sent++;
        link->count.bytes_sent += bytes;
    }
    return status;
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

static bool topic_is_newer(const eipc_link *link) {
    for (uint32_t left = link->topics; left; left &= left - 1) {
        int topic = __builtin_ctz(left);
        if (atomic_load_explicit(&link->peer_board->latest[topic], memory_order_seq_cst) != link->topic_seen[topic]) return true;
    }
    return false;
}

bool eipc_readable(eipc_link *link) {
    return atomic_load_explicit(&link->peer->tx_tail, memory_order_seq_cst) != link->rx_head || (link->topics && topic_is_newer(link)) ||
           atomic_load_explicit(&link->gone, memory_order_relaxed) || atomic_load_explicit(&link->closed, memory_order_relaxed) ||
           atomic_load_explicit(&link->violated, memory_order_relaxed);
}

static void advance(eipc_link *link, uint64_t head) {
    link->rx_head = head;
    atomic_store_explicit(&link->me->rx_head, head, memory_order_seq_cst);
    eipc_link_ring_for_room(link);
}

static eipc_map *find_slot(eipc_link *link, uint32_t slot, uint32_t generation) {
    for (int attempt = 0; attempt < 2; attempt++) {
        pthread_mutex_lock(&link->packets);
        eipc_map *map = link->rx_slots[slot];
        if (map && map->generation == generation) eipc_map_ref(map);
        else map = NULL;
        pthread_mutex_unlock(&link->packets);
        if (map) return map;
        eipc_link_drain(link); /* the slot was announced on the socket before its descriptor was committed */
    }
    return NULL;
}

static int open_descriptor(eipc_link *link, const uint8_t *payload, eipc_message *out) {
    uint32_t descriptor[2];
    memcpy(descriptor, payload, sizeof descriptor);
    if (descriptor[0] >= EIPC_SLOTS) return eipc_link_violation(link);
    eipc_map *map = find_slot(link, descriptor[0], descriptor[1]);
    if (!map) return eipc_link_violation(link);
    int status = eipc_slot_open(map, out);
    if (status) {
        eipc_map_unref(map);
        return eipc_link_violation(link);
    }
    for (int i = 0; i < EIPC_PINS && !out->pin; i++)
        if (atomic_load_explicit(&link->me->pins[i], memory_order_acquire) == 0) out->pin = &link->me->pins[i];
    /* The pin is stored before rx_head moves, so the writer, which reads rx_head first, can't miss it. Without a free pin
     * rx_head holds the slot until the message has been copied. */
    if (out->pin) atomic_store_explicit(out->pin, descriptor[0] + 1, memory_order_seq_cst);
    else out->must_copy = true;
    return EIPC_OK;
}

static int begin_ring_read(eipc_link *link, eipc_message *out) {
    for (;;) {
        uint64_t tail = atomic_load_explicit(&link->peer->tx_tail, memory_order_seq_cst);
        uint64_t committed = tail - link->rx_head;
        if (committed == 0) return EIPC_FULL;
        uint64_t at = link->rx_head & (link->rx_capacity - 1);
        if (committed > link->rx_capacity || tail < link->rx_head) return eipc_link_violation(link);
        record header;
        memcpy(&header, link->rx_ring + at, sizeof header);
        if (header.bytes < 64 || header.bytes % 64 || header.bytes > committed || header.bytes > link->rx_capacity - at)
            return eipc_link_violation(link);
        if (header.kind == KIND_PAD) {
            if (header.bytes != link->rx_capacity - at) return eipc_link_violation(link);
            advance(link, link->rx_head + header.bytes);
            continue;
        }
        if (header.sequence != link->rx_sequence) return eipc_link_violation(link);
        const uint8_t *payload = link->rx_ring + at + sizeof header;
        uint64_t payload_bytes = header.bytes - sizeof header, table = round_up((uint64_t)header.count * 4, 8);
        *out = (eipc_message){.next_head = link->rx_head + header.bytes};
        if (header.kind == KIND_DESC) return open_descriptor(link, payload, out);
        if (header.kind != KIND_DATA || header.count == 0 || header.count > EIPC_MAX_PARTS || table > payload_bytes)
            return eipc_link_violation(link);
        out->lengths = payload;
        out->body = payload + table;
        out->room = payload_bytes - table;
        out->count = header.count;
        out->align = 8;
        return EIPC_OK;
    }
}

int eipc_begin_read(eipc_link *link, eipc_message *out) {
    if (link->forks != eipc_fork_count()) return EIPC_FORKED;
    if (atomic_load_explicit(&link->closed, memory_order_relaxed)) return EIPC_CLOSED;
    if (atomic_load_explicit(&link->violated, memory_order_relaxed)) return EIPC_VIOLATION;
    /* Read before the ring: what was committed before the death is visible once the death is. */
    bool gone = atomic_load_explicit(&link->gone, memory_order_acquire);
    if (gone && link->wanted_topics && !link->topics) eipc_link_drain(link); /* the packet that opens the topics may still lie there */
    bool topics_first = link->topics && (++link->turn & 7) == 0; /* so that a full ring cannot starve them */
    int status = topics_first ? eipc_topic_begin_read(link, out) : EIPC_FULL;
    if (status == EIPC_FULL) status = begin_ring_read(link, out);
    if (status == EIPC_FULL && link->topics && !topics_first) status = eipc_topic_begin_read(link, out);
    return status == EIPC_FULL && gone ? EIPC_GONE : status;
}

int eipc_read_length(const eipc_message *message, uint32_t i, uint64_t *offset, uint64_t *bytes) {
    uint64_t length;
    if (message->map) {
        memcpy(&length, message->lengths + (size_t)i * 8, 8);
    } else {
        uint32_t small;
        memcpy(&small, message->lengths + (size_t)i * 4, 4);
        length = small;
    }
    if (*offset > message->room || length > message->room - *offset) return EIPC_VIOLATION;
    *bytes = length;
    *offset += round_up(length, message->align); /* of the next part; checked when that one is read */
    return EIPC_OK;
}

void eipc_end_read(eipc_link *link, eipc_message *message) {
    link->count.messages_received++;
    if (message->next_head == link->rx_head) return; /* a topic's value is not in the ring */
    link->rx_sequence++;
    advance(link, message->next_head);
}

void eipc_release_pin(eipc_link *link, eipc_map *map, _Atomic uint64_t *pin) {
    /* After fork the pin belongs to the parent, whose views may still be alive. */
    if (link->forks == eipc_fork_count()) {
        if (pin) atomic_store_explicit(pin, 0, memory_order_seq_cst);
        eipc_link_ring_for_room(link);
    }
    eipc_map_unref(map);
}
