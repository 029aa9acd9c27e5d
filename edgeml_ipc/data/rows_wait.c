/* Waiting, and the counts of the rate limiter, for processes that share nothing but the segment.
 *
 *      who waits                                         who changes something (rows committed, samples taken)
 *   1  seen = event                                   1  the change
 *   2  wanted = 1                                     2  seq_cst fence
 *   3  seq_cst fence                                  3  if wanted: exchange it for 0; if it was not 0:
 *   4  look; done if it is there                      4      event++
 *   5  FUTEX_WAIT while event == seen; from 1 again   5      FUTEX_WAKE all
 *
 * No wake-up is lost. Of a change and a wait, look at the two fences in their one order. If the changer's is first, the waiter
 * sees the change in its step 4. If the waiter's is first, the changer in its step 3 sees wanted = 1, or a 0 by which another
 * changer exchanged it after step 2 of the waiter. Either way somebody's exchange comes after that step 2, and his event++ after
 * his exchange, so after step 1: event is no more what was seen, and step 5 ends at once, or is woken. (With steps 1 and 2 the
 * other way round this fails: `event` can be counted up between them for a change that is past, `wanted` is 0 then, and the
 * next change wakes nobody.)
 *
 * A wait is cut into slices, each of which begins with step 1: so a changer that is killed between its steps 3 and 5 delays a
 * waiter by one slice, and signals are seen to.
 *
 * A waiter that is killed leaves wanted = 1, which costs the next change one needless wake. Both words may hold anything: a
 * wrong value costs wakes, or a slice of waiting, and no more.
 *
 * The two counts only rise, but for rows that are given back. So who adds to one by compare-and-swap, having looked at the
 * other before, was allowed to by the counts of that moment, too: the other can only have moved in its favour.
 */
#define _GNU_SOURCE
#include "rows.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(offsetof(erb_header, wanted) == 0x280 && offsetof(erb_header, granted_inserts) == 0x300, "as drawn in docs/replay.md");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "a futex is a lock-free word");

static const int64_t most_granted = (int64_t)1 << 62;

uint32_t erb_wait_begin(erb_header *header) {
    uint32_t seen = atomic_load_explicit(&header->event, memory_order_seq_cst);
    atomic_store_explicit(&header->wanted, 1, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    return seen;
}

int erb_wait(erb_header *header, uint32_t seen, uint64_t nanoseconds) {
    struct timespec time = {.tv_sec = (time_t)(nanoseconds / 1000000000u), .tv_nsec = (long)(nanoseconds % 1000000000u)};
    if (syscall(SYS_futex, &header->event, FUTEX_WAIT, seen, &time, NULL, 0) == 0) return ERB_OK;
    return errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT ? ERB_OK : ERB_SYSTEM;
}

void erb_wake_all(erb_header *header) {
    atomic_fetch_add_explicit(&header->event, 1, memory_order_seq_cst);
    syscall(SYS_futex, &header->event, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void erb_changed(erb_header *header) {
    atomic_thread_fence(memory_order_seq_cst);
    if (!atomic_load_explicit(&header->wanted, memory_order_relaxed)) return;
    if (atomic_exchange_explicit(&header->wanted, 0, memory_order_seq_cst)) erb_wake_all(header);
}

/* ---- holding back --------------------------------------------------------------------------------------------------- */

/* A reader whose rows are overwritten again and again while it copies them (the buffer is small for the speed of its writers, or a
 * thread of its own process writes whenever it gives up the interpreter lock) asks writers to hold back until a moment that is near.
 * That is advice, not a lock: nothing becomes wrong if a writer goes on, a reader that dies is forgotten when the moment has come,
 * and no value of the word delays an insert by more than ERB_HOLD_NS. */

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void erb_hold(erb_header *header, uint64_t nanoseconds) {
    if (nanoseconds > ERB_HOLD_NS) nanoseconds = ERB_HOLD_NS;
    atomic_store_explicit(&header->held_until, nanoseconds ? now_ns() + nanoseconds : 0, memory_order_relaxed);
}

uint64_t erb_held_ns(const erb_header *header) {
    uint64_t until = atomic_load_explicit(&header->held_until, memory_order_relaxed), now;
    if (!until || until <= (now = now_ns())) return 0;
    return until - now < ERB_HOLD_NS ? until - now : ERB_HOLD_NS;
}

/* ---- the rate limiter ----------------------------------------------------------------------------------------------- */

int erb_granted(erb_header *header, int64_t *inserts, int64_t *samples) {
    *inserts = atomic_load_explicit(&header->granted_inserts, memory_order_seq_cst);
    *samples = atomic_load_explicit(&header->granted_samples, memory_order_seq_cst);
    bool is_sane = *inserts >= 0 && *inserts <= most_granted && *samples >= 0 && *samples <= most_granted;
    return is_sane ? ERB_OK : ERB_DAMAGED;
}

bool erb_grant(erb_header *header, _Atomic int64_t *count, int64_t seen, int64_t rows) {
    if (!atomic_compare_exchange_strong_explicit(count, &seen, seen + rows, memory_order_seq_cst, memory_order_seq_cst)) return false;
    erb_changed(header);
    return true;
}

void erb_grant_back(erb_header *header, int64_t inserts, int64_t samples) {
    if (inserts) atomic_fetch_sub_explicit(&header->granted_inserts, inserts, memory_order_seq_cst);
    if (samples) atomic_fetch_sub_explicit(&header->granted_samples, samples, memory_order_seq_cst);
    erb_changed(header);
}

/* What a writer was granted and did not commit, it never will. May be begun again after a death at any point: then it is
 * lost that it was granted, not subtracted twice. */
void erb_grant_settle(erb_table *table, uint32_t place, int64_t total) {
    int64_t granted = atomic_exchange_explicit(&table->slots[place].granted, 0, memory_order_seq_cst);
    if (table->header->min_rows <= 0 || total < 0 || granted <= total || granted > most_granted) return;
    erb_grant_back(table->header, granted - total, 0);
}
