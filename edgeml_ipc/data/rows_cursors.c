/* Cursors: up to which item each uploading client's stream is committed, so that a learner that was killed goes on from there.
 *
 * A stream is written by one writer at a time, item after item. While it is, its cursor is `base` + the rows that the writer has
 * committed: it moves with the commit itself, and no death can come between the two. When the writer ends, or is recovered,
 * the sum is stored as `next_id`, before its chunks are let go; that can be done again after a death in between.
 */
#define _GNU_SOURCE
#include "rows.h"

#include <errno.h>
#include <time.h>

static const int lock_tries = 1000; /* a millisecond apart */

static int64_t load(const _Atomic int64_t *word) { return atomic_load_explicit(word, memory_order_acquire); }
static void store(_Atomic int64_t *word, int64_t value) { atomic_store_explicit(word, value, memory_order_release); }

static bool has_key(const erb_cursor *cursor, const uint64_t key[2]) {
    return load(&cursor->used) && atomic_load_explicit(&cursor->key[0], memory_order_relaxed) == key[0] &&
           atomic_load_explicit(&cursor->key[1], memory_order_relaxed) == key[1];
}

static erb_cursor *find(const erb_table *table, const uint64_t key[2]) {
    for (uint64_t i = 0; i < table->cursor_slots; i++)
        if (has_key(&table->cursors[i], key)) return &table->cursors[i];
    return NULL;
}

/* The place of a writer that is in the registry, dead or alive; or -1. */
static int64_t place_of(const erb_table *table, int64_t writer) {
    for (uint64_t place = 0; place < table->writer_slots; place++)
        if (load(&table->slots[place].writer) == writer) return (int64_t)place;
    return -1;
}

int erb_cursor_read(erb_table *table, const uint64_t key[2], int64_t *next_id) {
    *next_id = -1;
    for (int tries = 0; tries < lock_tries; tries++) { /* again where the stream changed hands meanwhile */
        const erb_cursor *cursor = find(table, key);
        if (!cursor) return ERB_OK;
        int64_t writer = load(&cursor->writer), base = load(&cursor->base), next = load(&cursor->next_id);
        int64_t place = writer ? place_of(table, writer) : -1;
        if (writer && place < 0) continue;
        if (writer) next = base + erb_total(table, (uint32_t)place);
        if (load(&cursor->writer) != writer || load(&cursor->base) != base || !has_key(cursor, key)) continue;
        *next_id = next < 0 ? 0 : next;
        return ERB_OK;
    }
    return ERB_DAMAGED;
}

/* A free place, or the one that was used longest ago and that nobody writes now. */
static erb_cursor *free_place(const erb_table *table) {
    erb_cursor *oldest = NULL;
    for (uint64_t i = 0; i < table->cursor_slots; i++) {
        erb_cursor *cursor = &table->cursors[i];
        if (!load(&cursor->used)) return cursor;
        if (!load(&cursor->writer) && (!oldest || load(&cursor->used) < load(&oldest->used))) oldest = cursor;
    }
    return oldest;
}

static bool locked(const erb_table *table) {
    for (int tries = 0; tries < lock_tries; tries++) {
        if (erb_lock(table, ERB_CURSORS_BYTE, false)) return true;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    errno = EBUSY;
    return false;
}

/* The lock is held. */
static int bind_to(erb_table *table, const uint64_t key[2], const erb_writer *me, int64_t next_id) {
    erb_cursor *cursor = find(table, key);
    bool is_new = !cursor;
    if (is_new) {
        cursor = free_place(table);
        if (!cursor) return ERB_NO_SLOT;
        store(&cursor->used, 0); /* nobody finds it while it changes */
        atomic_store_explicit(&cursor->key[0], key[0], memory_order_relaxed);
        atomic_store_explicit(&cursor->key[1], key[1], memory_order_relaxed);
        store(&cursor->writer, 0);
    }
    int64_t writer = load(&cursor->writer);
    if (writer && writer != me->number && place_of(table, writer) >= 0) return ERB_FULL; /* it has the stream yet */
    if (!is_new && !writer && load(&cursor->next_id) > next_id) return ERB_FULL; /* it had, since the caller looked, and went on */
    store(&cursor->next_id, next_id);
    if (writer != me->number) store(&cursor->writer, 0); /* `next_id` holds until the new writer has its base */
    store(&cursor->base, next_id - me->total);
    store(&cursor->writer, me->number);
    store(&cursor->used, atomic_fetch_add_explicit(&table->header->cursor_clock, 1, memory_order_relaxed) + 1);
    return ERB_OK;
}

int erb_cursor_bind(erb_table *table, const uint64_t key[2], uint32_t place, int64_t next_id) {
    const erb_writer *me = &table->writers[place];
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    pthread_mutex_lock(&table->mutex);
    int status = ERB_SYSTEM;
    if (locked(table)) {
        status = bind_to(table, key, me, next_id);
        erb_unlock(table, ERB_CURSORS_BYTE);
    }
    pthread_mutex_unlock(&table->mutex);
    return status;
}

void erb_cursor_settle(erb_table *table, int64_t writer, int64_t total) {
    for (uint64_t i = 0; i < table->cursor_slots; i++) {
        erb_cursor *cursor = &table->cursors[i];
        if (!load(&cursor->used) || load(&cursor->writer) != writer) continue;
        store(&cursor->next_id, load(&cursor->base) + total);
        store(&cursor->writer, 0);
    }
}
