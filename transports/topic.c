/* Newest-wins values: the publisher writes a slot once, however many subscribers there are, and waits for none of them.
 *
 * The publisher stores `latest` after the slot is whole. A subscriber loads `latest`, stores a pin, loads `latest` again and
 * starts over if it moved. The publisher, before it writes, reads each pin once and takes a slot that is neither the newest
 * nor in that snapshot. All of these accesses are seq_cst: either the publisher sees the pin, or the subscriber sees that
 * `latest` moved (models/newest_wins.pml). So pins + 2 slots are always enough.
 */
#include "core.h"

#include <sched.h>
#include <stdlib.h>

#define GENERATION_MASK 0xffffu

static uint64_t latest_word(uint64_t version, uint32_t generation, int slot) {
    return version << 24 | (uint64_t)(generation & GENERATION_MASK) << 8 | (uint64_t)(slot + 1);
}

int eipc_topic_create(eipc_waiter *waiter, int index, uint64_t budget_bytes, eipc_topic **out) {
    eipc_topic *topic = calloc(1, sizeof *topic);
    if (!topic) return EIPC_NO_MEMORY;
    eipc_waiter_ref(waiter);
    topic->waiter = waiter;
    topic->index = index;
    topic->budget_bytes = budget_bytes;
    topic->current = -1;
    *out = topic;
    return EIPC_OK;
}

void eipc_topic_destroy(eipc_topic *topic) {
    for (size_t i = 0; i < topic->subscriber_count; i++) eipc_link_unref(topic->subscribers[i]);
    for (int i = 0; i < EIPC_TOPIC_SLOTS; i++) eipc_slot_discard(&topic->slots[i]);
    free(topic->subscribers);
    eipc_waiter_unref(topic->waiter);
    free(topic);
}

int eipc_topic_add(eipc_topic *topic, eipc_link *link) {
    if (topic->subscriber_count == topic->subscriber_room) {
        size_t room = topic->subscriber_room ? topic->subscriber_room * 2 : 8;
        eipc_link **grown = realloc(topic->subscribers, room * sizeof *grown);
        if (!grown) return EIPC_NO_MEMORY;
        topic->subscribers = grown;
        topic->subscriber_room = room;
    }
    for (int i = 0; i < EIPC_TOPIC_SLOTS; i++) {
        if (!topic->slots[i].map) continue;
        int status = eipc_link_announce(link, topic->index, (uint32_t)i, topic->slots[i].map);
        if (status) return status;
    }
    eipc_link_ref(link);
    topic->subscribers[topic->subscriber_count++] = link;
    return EIPC_OK;
}

static uint64_t pinned_by(const _Atomic uint64_t *pins) {
    uint64_t slots = 0;
    for (int i = 0; i < EIPC_TOPIC_PINS; i++) {
        uint64_t pin = atomic_load_explicit(&pins[i], memory_order_seq_cst);
        if (pin >= 1 && pin <= EIPC_TOPIC_SLOTS) slots |= 1ull << (pin - 1);
    }
    return slots;
}

static void discard(eipc_topic *topic, int i) {
    eipc_slot_discard(&topic->slots[i]);
    topic->count.slots_discarded++;
}

void eipc_topic_remove(eipc_topic *topic, eipc_link *link) {
    for (size_t i = 0; i < topic->subscriber_count; i++) {
        if (topic->subscribers[i] != link) continue;
        topic->subscribers[i] = topic->subscribers[--topic->subscriber_count];
        /* Views may live on where that subscriber was: what it had pinned is never written again. The newest value's slot
         * stays until the next publish replaces it; a child of the dead process may then see it change, so it goes too,
         * by being marked as used up. */
        uint64_t slots = pinned_by(link->peer->topic_pins[topic->index]);
        for (int s = 0; s < EIPC_TOPIC_SLOTS; s++) {
            if (!(slots >> s & 1)) continue;
            if (s == topic->current) topic->slots[s].consumed_at = 1;
            else discard(topic, s);
        }
        eipc_link_unref(link);
        return;
    }
}

static int acquire(eipc_topic *topic, size_t need, int *chosen) {
    uint64_t taken = pinned_by(topic->local_pins);
    if (topic->current >= 0) taken |= 1ull << topic->current;
    for (size_t i = 0; i < topic->subscriber_count; i++) taken |= pinned_by(topic->subscribers[i]->peer->topic_pins[topic->index]);
    for (int i = 0; i < EIPC_TOPIC_SLOTS; i++)
        if (topic->slots[i].map && topic->slots[i].consumed_at && i != topic->current) discard(topic, i);
    bool renew;
    int i = eipc_slot_choose(topic->slots, EIPC_TOPIC_SLOTS, need, taken, topic->budget_bytes, &renew, &topic->count.slots_discarded);
    if (i < 0) return EIPC_FULL;
    *chosen = i;
    if (!renew) return EIPC_OK;
    eipc_slot *slot = &topic->slots[i];
    int status = eipc_slot_renew(slot, need);
    if (status) return status;
    topic->count.slots_created++;
    /* A subscriber that does not read its socket is on its way out: its link's own end will be noticed. */
    for (size_t s = 0; s < topic->subscriber_count; s++) (void)eipc_link_announce(topic->subscribers[s], topic->index, (uint32_t)i, slot->map);
    return EIPC_OK;
}

int eipc_topic_publish(eipc_topic *topic, const eipc_part *parts, uint32_t count) {
    if (topic->waiter->forks != eipc_fork_count()) return EIPC_FORKED;
    if (count == 0 || count > EIPC_MAX_PARTS) return EIPC_TOO_LARGE;
    int i = 0;
    int status = acquire(topic, eipc_slot_bytes(parts, count), &i);
    if (status) {
        topic->count.refused++;
        return status;
    }
    eipc_slot *slot = &topic->slots[i];
    eipc_slot_write(slot->map->addr, parts, count);
    slot->last_use = ++topic->version;
    topic->current = i;
    topic->count.publishes++;
    atomic_store_explicit(&topic->waiter->board->latest[topic->index], latest_word(topic->version, slot->generation, i), memory_order_seq_cst);
    for (size_t s = 0; s < topic->subscriber_count; s++) eipc_link_ring_if_parked(topic->subscribers[s]);
    return EIPC_OK;
}

int eipc_topic_hold(eipc_topic *topic, eipc_message *out) {
    if (topic->current < 0) return EIPC_FULL;
    for (int i = 0; i < EIPC_TOPIC_PINS; i++) {
        if (atomic_load_explicit(&topic->local_pins[i], memory_order_acquire)) continue;
        *out = (eipc_message){.pin = &topic->local_pins[i]};
        atomic_store_explicit(out->pin, (uint64_t)topic->current + 1, memory_order_seq_cst);
        return eipc_slot_open(eipc_map_ref(topic->slots[topic->current].map), out);
    }
    return EIPC_FULL;
}

/* ---- the subscriber's side ----------------------------------------------------------------------------------------- */

static eipc_map *find_slot(eipc_link *link, int topic, int slot, uint32_t generation) {
    for (int attempt = 0; attempt < 2; attempt++) {
        pthread_mutex_lock(&link->packets);
        eipc_map *map = link->rx_topic_slots[topic][slot];
        if (map && (map->generation & GENERATION_MASK) == generation) eipc_map_ref(map);
        else map = NULL;
        pthread_mutex_unlock(&link->packets);
        if (map) return map;
        eipc_link_drain(link); /* announced on the socket before `latest` named it */
    }
    return NULL;
}

static _Atomic uint64_t *free_pin(eipc_link *link, int topic, bool *last) {
    for (int i = 0; i < EIPC_TOPIC_PINS; i++) {
        *last = i == EIPC_TOPIC_PINS - 1;
        if (!atomic_load_explicit(&link->me->topic_pins[topic][i], memory_order_acquire)) return &link->me->topic_pins[topic][i];
    }
    return NULL; /* not reached: the last pin is only held during a copy */
}

static int pin_newest(eipc_link *link, int topic, eipc_message *out) {
    bool last;
    _Atomic uint64_t *pin = free_pin(link, topic, &last);
    if (!pin) return EIPC_FULL;
    uint64_t word = atomic_load_explicit(&link->peer_board->latest[topic], memory_order_seq_cst), again;
    for (;; word = again) {
        uint64_t slot = word & 0xff;
        if (slot == 0 || slot > EIPC_TOPIC_SLOTS) {
            atomic_store_explicit(pin, 0, memory_order_seq_cst);
            return eipc_link_violation(link);
        }
#ifdef EIPC_TEST_NO_RECHECK /* the tests prove that a torn value is seen; a pause here makes it frequent */
        sched_yield();
        atomic_store_explicit(pin, slot, memory_order_seq_cst);
        again = word;
#else
        atomic_store_explicit(pin, slot, memory_order_seq_cst);
        again = atomic_load_explicit(&link->peer_board->latest[topic], memory_order_seq_cst);
#endif
        if (again == word) break;
    }
    eipc_map *map = find_slot(link, topic, (int)(word & 0xff) - 1, (uint32_t)(word >> 8) & GENERATION_MASK);
    *out = (eipc_message){.next_head = link->rx_head, .pin = pin, .must_copy = last};
    if (!map || eipc_slot_open(map, out)) {
        atomic_store_explicit(pin, 0, memory_order_seq_cst);
        eipc_map_unref(map);
        return eipc_link_violation(link);
    }
    link->topic_seen[topic] = word;
    return EIPC_OK;
}

int eipc_topic_begin_read(eipc_link *link, eipc_message *out) {
    for (uint32_t left = link->topics; left; left &= left - 1) {
        int topic = __builtin_ctz(left);
        if (atomic_load_explicit(&link->peer_board->latest[topic], memory_order_seq_cst) == link->topic_seen[topic]) continue;
        int status = pin_newest(link, topic, out);
        if (status != EIPC_FULL) return status;
    }
    return EIPC_FULL;
}
