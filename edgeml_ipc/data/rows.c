/* Chunks: claimed by compare-and-swap, written by one, read by all. See docs/replay.md for the ordering.
 *
 * This file is longer than 400 lines because the writer's steps and the reader's are two halves of one protocol. */
#define _GNU_SOURCE
#include "rows.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLACE_BITS 16
#define PLACE_MASK ((1u << PLACE_BITS) - 1)
#define HEADER_BYTES 4096
#define MAX_CAPACITY ((uint64_t)1 << 40)

_Static_assert(sizeof(erb_header) <= HEADER_BYTES, "the header fits its page");
_Static_assert(sizeof(erb_slot) == 64 && sizeof(erb_chunk) == 128, "as drawn in docs/replay.md");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_CHAR_LOCK_FREE == 2, "atomics in shared memory must be lock-free");

uint64_t erb_chunks_for(uint64_t capacity, uint64_t chunk_rows) { return (capacity + chunk_rows - 1) / chunk_rows; }

uint64_t erb_schema_at(const erb_geometry *g) {
    if (g->capacity < 1 || g->capacity > MAX_CAPACITY || g->chunk_rows < 1 || g->chunk_rows > g->capacity) return 0;
    if (g->writer_slots < 1 || g->writer_slots > ERB_MAX_WRITERS || erb_chunks_for(g->capacity, g->chunk_rows) > ERB_MAX_CHUNKS) return 0;
    if (g->stack < 1 || g->stack > ERB_MAX_STACK || g->cursor_slots > ERB_MAX_CURSORS) return 0;
    if (g->chunk_frames && (g->chunk_frames < 2 * g->stack || g->chunk_frames > ERB_MAX_FRAMES)) return 0;
    uint64_t chunks_at = (HEADER_BYTES + g->writer_slots * sizeof(erb_slot) + 127) & ~(uint64_t)127;
    return chunks_at + erb_chunks_for(g->capacity, g->chunk_rows) * sizeof(erb_chunk) + g->cursor_slots * sizeof(erb_cursor);
}

static erb_geometry geometry_of(const erb_header *header) {
    return (erb_geometry){header->capacity, header->chunk_rows, header->writer_slots, header->chunk_frames, header->stack, header->cursor_slots};
}

int erb_format(void *base, uint64_t bytes, const erb_geometry *geometry, uint64_t schema_bytes, const uint8_t incarnation[16]) {
    uint64_t schema_at = erb_schema_at(geometry);
    if (!schema_at || schema_bytes > bytes || schema_at > bytes - schema_bytes) return ERB_DAMAGED;
    erb_header *header = base;
    header->magic = ERB_MAGIC;
    header->version = ERB_VERSION;
    header->segment_bytes = bytes;
    header->capacity = geometry->capacity;
    header->chunk_rows = geometry->chunk_rows;
    header->writer_slots = geometry->writer_slots;
    header->chunk_frames = geometry->chunk_frames;
    header->stack = geometry->stack;
    header->cursor_slots = geometry->cursor_slots;
    header->schema_bytes = schema_bytes;
    memcpy(header->incarnation, incarnation, sizeof header->incarnation);
    atomic_store_explicit(&header->next_writer, 1, memory_order_relaxed);
    return ERB_OK;
}

void erb_publish(void *base) { atomic_store_explicit(&((erb_header *)base)->ready, 1, memory_order_release); }

int erb_inspect(const void *base, uint64_t bytes) {
    const erb_header *header = base;
    if (bytes < HEADER_BYTES) return bytes ? ERB_FOREIGN : ERB_UNREADY;
    uint32_t ready = atomic_load_explicit(&header->ready, memory_order_acquire);
    if (!header->magic && !ready) return ERB_UNREADY;
    if (header->magic != ERB_MAGIC) return ERB_FOREIGN;
    if (header->version != ERB_VERSION) return ERB_VERSIONED;
    if (ready != 1) return ERB_UNREADY;
    erb_geometry geometry = geometry_of(header);
    uint64_t schema_at = erb_schema_at(&geometry);
    if (!schema_at || header->segment_bytes != bytes || header->schema_bytes > bytes) return ERB_DAMAGED;
    return schema_at > bytes - header->schema_bytes ? ERB_DAMAGED : ERB_OK;
}

/* Whether a column of that many items lies within the segment, behind the schema, in step with its items. */
static bool fits(uint64_t at, uint64_t items, uint64_t item_bytes, uint64_t schema_at, uint64_t bytes) {
    return at % item_bytes == 0 && at >= schema_at && at <= bytes && items <= (bytes - at) / item_bytes;
}

static bool all_fit(const erb_places *p, uint64_t items, uint64_t schema_at, uint64_t bytes) {
    return fits(p->sequence, items, 8, schema_at, bytes) && fits(p->position, items, 4, schema_at, bytes) &&
           fits(p->version, items, 4, schema_at, bytes) && fits(p->writer, items, 4, schema_at, bytes) &&
           fits(p->frame, items, 2, schema_at, bytes) && fits(p->flags, items, 1, schema_at, bytes);
}

int erb_open(void *base, int fd, const erb_places *places, const erb_column *columns, size_t column_count, erb_table **out) {
    erb_header *header = base;
    erb_geometry g = geometry_of(header);
    uint64_t schema_at = erb_schema_at(&g);
    if (!schema_at || !all_fit(places, g.capacity, schema_at, header->segment_bytes)) return ERB_DAMAGED;
    erb_table *table = calloc(1, sizeof *table);
    if (!table) return ERB_SYSTEM;
    table->header = header;
    table->capacity = g.capacity;
    table->chunk_rows = g.chunk_rows;
    table->writer_slots = g.writer_slots;
    table->chunk_frames = g.chunk_frames;
    table->stack = g.stack;
    table->cursor_slots = g.cursor_slots;
    table->chunk_count = erb_chunks_for(table->capacity, table->chunk_rows);
    table->column_count = column_count;
    table->columns = malloc((column_count + 1) * sizeof *columns);
    table->writers = calloc(table->writer_slots, sizeof *table->writers);
    table->fd = table->columns && table->writers ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (table->fd < 0) {
        free(table->columns);
        free(table->writers);
        free(table);
        return ERB_SYSTEM;
    }
    if (column_count) memcpy(table->columns, columns, column_count * sizeof *columns);
    uint8_t *begin = base;
    table->slots = (erb_slot *)(begin + HEADER_BYTES);
    table->cursors = (erb_cursor *)(begin + schema_at) - table->cursor_slots;
    table->chunks = (erb_chunk *)(void *)table->cursors - table->chunk_count;
    table->sequence = (int64_t *)(begin + places->sequence);
    table->position = (int32_t *)(begin + places->position);
    table->version = (int32_t *)(begin + places->version);
    table->writer = (int32_t *)(begin + places->writer);
    table->frame = (uint16_t *)(begin + places->frame);
    table->flags = (_Atomic uint8_t *)(begin + places->flags);
    while ((uint64_t)1 << table->stride_bits <= table->chunk_rows) table->stride_bits++;
    table->forks = erb_fork_count();
    table->pid_space = erb_pid_space();
    pthread_mutex_init(&table->mutex, NULL);
    *out = table;
    return ERB_OK;
}

void erb_close(erb_table *table) {
    if (table->forks == erb_fork_count())
        for (uint32_t place = 0; place < table->writer_slots; place++) erb_forget(table, place);
    pthread_mutex_destroy(&table->mutex);
    close(table->fd);
    free(table->writers);
    free(table->columns);
    free(table);
}

/* ---- one chunk ----------------------------------------------------------------------------------------------------- */

static uint64_t stride(const erb_table *table) { return (uint64_t)1 << table->stride_bits; }

uint64_t erb_rows_in(const erb_table *table, uint64_t chunk) {
    uint64_t left = table->capacity - chunk * table->chunk_rows;
    return left < table->chunk_rows ? left : table->chunk_rows;
}

/* Split a stamp into generation and rows, of which there can be no more than the chunk has. */
static int split(const erb_table *table, uint64_t chunk, uint64_t stamp, uint64_t *generation, uint64_t *rows) {
    *generation = stamp >> table->stride_bits;
    *rows = stamp & (stride(table) - 1);
    return *rows <= erb_rows_in(table, chunk) ? ERB_OK : ERB_DAMAGED;
}

/* Where the frames of the rows up to the stamp `end` end: there the next ones begin. */
static uint64_t frames_after(const erb_table *table, uint64_t chunk, uint64_t end) {
    uint64_t rows = end & (stride(table) - 1);
    if (!table->chunk_frames || !rows) return 0;
    uint64_t last = chunk * table->chunk_rows + rows - 1;
    uint8_t flags = atomic_load_explicit(&table->flags[last], memory_order_relaxed);
    return (table->frame[last] + (flags & ERB_DETACHED ? table->stack : 1) + 1) % table->chunk_frames;
}

/* What a writer knows of the chunk that it begins. */
static void settle_into(const erb_table *table, erb_writer *me, uint64_t chunk, uint64_t generation) {
    const erb_chunk *c = &table->chunks[chunk];
    uint64_t ended = atomic_load_explicit(&c->ended, memory_order_relaxed);
    uint64_t gone = atomic_load_explicit(&c->reserved, memory_order_relaxed) - (generation << table->stride_bits);
    bool has_old = generation && ended >> table->stride_bits == generation - 1;
    me->old_rows = has_old ? ended & (stride(table) - 1) : 0;
    if (me->old_rows > erb_rows_in(table, chunk)) me->old_rows = 0;
    me->gone = gone < me->old_rows ? gone : me->old_rows;
    me->frames_begin = me->old_rows ? frames_after(table, chunk, ended) : 0;
    me->frames_used = 0;
    me->continues = false;
}

/* The chunk's lease is mine: begin a generation. Can be begun again after a death at any point. */
static int begin_generation(erb_table *table, erb_writer *me, uint64_t chunk) {
    erb_chunk *c = &table->chunks[chunk];
    uint64_t committed = atomic_load_explicit(&c->committed, memory_order_relaxed), generation, rows;
    if (split(table, chunk, committed, &generation, &rows)) return ERB_DAMAGED;
    int64_t before = atomic_load_explicit(&c->of[generation & 1].rows_before, memory_order_relaxed);
    if (rows) { /* else nobody committed anything in this one: take it over */
        generation++;
        atomic_store_explicit(&c->reserved, generation << table->stride_bits, memory_order_relaxed);
        atomic_thread_fence(memory_order_release); /* `of` below replaces what belonged to rows that just ended */
        atomic_store_explicit(&c->ended, committed, memory_order_relaxed);
    }
    erb_generation *of = &c->of[generation & 1];
    bool is_first = me->chunk < 0;
    atomic_store_explicit(&of->writer, me->number, memory_order_relaxed);
    atomic_store_explicit(&of->previous_chunk, me->chunk, memory_order_relaxed);
    atomic_store_explicit(&of->previous_generation, is_first ? 0 : me->committed >> table->stride_bits, memory_order_relaxed);
    atomic_store_explicit(&of->previous_rows, is_first ? 0 : (int64_t)(me->committed & (stride(table) - 1)), memory_order_relaxed);
    atomic_store_explicit(&of->rows_before, before + (int64_t)rows, memory_order_relaxed);
    atomic_store_explicit(&of->writer_rows, me->total, memory_order_relaxed);
    settle_into(table, me, chunk, generation);
    me->committed = generation << table->stride_bits;
    atomic_store_explicit(&c->committed, me->committed, memory_order_release);
    return ERB_OK;
}

static uint64_t lease_word(uint64_t old, uint64_t holder) { return ((old >> PLACE_BITS) + 1) << PLACE_BITS | holder; }

static void release_lease(erb_table *table, int64_t chunk) {
    _Atomic uint64_t *lease = &table->chunks[chunk].lease;
    atomic_store_explicit(lease, lease_word(atomic_load_explicit(lease, memory_order_relaxed), 0), memory_order_release);
}

/* What is left of the generation before in a chunk that is closed early goes now: it is older than what the next chunk holds. */
static void drop_old_rows(erb_table *table, erb_writer *me) {
    uint64_t used = me->committed & (stride(table) - 1);
    if (me->chunk >= 0 && me->old_rows > used) erb_announce(table, me, me->old_rows - used, 0);
}

/* Find the chunk that was claimed longest ago and that nobody writes, and claim it. The mutex is held. */
static int claim(erb_table *table, uint32_t place) {
    erb_writer *me = &table->writers[place];
    uint64_t alive[ERB_MAX_WRITERS / 64] = {0}; /* places that were looked at in this claim */
    int64_t found = -1;
    drop_old_rows(table, me);
    for (uint64_t turn = 0; found < 0 && turn < 2 * table->chunk_count; turn++) {
        uint64_t chunk = atomic_fetch_add_explicit(&table->header->hand, 1, memory_order_relaxed) % table->chunk_count;
        _Atomic uint64_t *lease = &table->chunks[chunk].lease;
        uint64_t seen = atomic_load_explicit(lease, memory_order_acquire), holder = seen & PLACE_MASK;
        if (holder > table->writer_slots) return ERB_DAMAGED;
        if (holder && !(alive[(holder - 1) / 64] >> (holder - 1) % 64 & 1)) {
            if (erb_recover_place(table, (uint32_t)holder - 1)) holder = (seen = atomic_load_explicit(lease, memory_order_acquire)) & PLACE_MASK;
            else alive[(holder - 1) / 64] |= (uint64_t)1 << (holder - 1) % 64;
        }
        if (!holder && atomic_compare_exchange_strong_explicit(lease, &seen, lease_word(seen, place + 1u), memory_order_acq_rel,
                                                               memory_order_relaxed))
            found = (int64_t)chunk;
    }
    if (found < 0) {
        if (me->chunk < 0) return ERB_FULL;
        found = me->chunk; /* all others are being written: go round in my own */
    }
    int status = begin_generation(table, me, (uint64_t)found);
    if (status) {
        if (found != me->chunk) release_lease(table, found);
        return status;
    }
    if (found != me->chunk) me->behind = me->chunk;
    me->chunk = found;
    atomic_store_explicit(&table->slots[place].chunk, found + 1, memory_order_release);
    return ERB_OK;
}

/* ---- writing ------------------------------------------------------------------------------------------------------- */

int erb_claim(erb_table *table, uint32_t place) {
    pthread_mutex_lock(&table->mutex);
    int status = claim(table, place);
    pthread_mutex_unlock(&table->mutex);
    return status;
}

/* Say that the next rows, and the frames up to the `frames`-th of this generation, are being overwritten. */
void erb_announce(erb_table *table, erb_writer *me, uint64_t rows, uint64_t frames) {
    erb_chunk *c = &table->chunks[me->chunk];
    uint64_t used = me->committed & (stride(table) - 1), end = used + rows;
    if (me->gone < end) me->gone = end;
    while (me->gone < me->old_rows) { /* the frames of an old row may go before the row does */
        uint64_t first = table->frame[(uint64_t)me->chunk * table->chunk_rows + me->gone] + 1 + table->chunk_frames - table->stack;
        if (!table->chunk_frames) break;
        first = erb_in_ring(first, table->chunk_frames);
        if (erb_in_ring(first + table->chunk_frames - me->frames_begin, table->chunk_frames) >= frames) break;
        me->gone++;
    }
    uint64_t stamp = me->committed - used + me->gone;
    if (stamp > atomic_load_explicit(&c->reserved, memory_order_relaxed)) atomic_store_explicit(&c->reserved, stamp, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* whoever sees a byte of the rows sees `reserved` */
}

int erb_reserve(erb_table *table, uint32_t place, uint64_t rows, int64_t *row, uint64_t *granted, int64_t *sequence) {
    erb_writer *me = &table->writers[place];
    uint64_t used = me->committed & (stride(table) - 1), room = 0;
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    if (table->chunk_frames) return ERB_DAMAGED; /* who reserves rows here must say which frames go with them: erb_append */
    if (me->chunk >= 0) room = erb_rows_in(table, (uint64_t)me->chunk) - used;
    if (!room) {
        int status = erb_claim(table, place);
        if (status) return status;
        used = 0;
        room = erb_rows_in(table, (uint64_t)me->chunk);
    }
    if (rows > room) rows = room;
    if (me->sequences && rows > (uint64_t)me->sequences) rows = (uint64_t)me->sequences; /* an attempt that was broken off */
    if (!me->sequences) {
        erb_open_sequence(table, place);
        me->sequence = atomic_fetch_add_explicit(&table->header->next_sequence, (int64_t)rows, memory_order_seq_cst);
        me->sequences = (int64_t)rows;
    }
    erb_announce(table, me, rows, 0);
    me->open_rows = rows;
    *row = me->chunk * (int64_t)table->chunk_rows + (int64_t)used;
    *granted = rows;
    *sequence = me->sequence;
    return ERB_OK;
}

int erb_commit(erb_table *table, uint32_t place) {
    erb_writer *me = &table->writers[place];
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    if (!me->open_rows) return ERB_OK;
    erb_chunk *c = &table->chunks[me->chunk];
    me->committed += me->open_rows;
    atomic_store_explicit(&c->committed, me->committed, memory_order_release);
    me->last_row = me->chunk * (int64_t)table->chunk_rows + (int64_t)(me->committed & (stride(table) - 1)) - 1;
    if (me->sequences) {
        me->sequence += (int64_t)me->open_rows;
        me->sequences -= (int64_t)me->open_rows;
        if (!me->sequences) erb_close_sequence(table, place, INT64_MAX);
    }
    me->total += (int64_t)me->open_rows;
    me->open_rows = 0;
    if (me->behind >= 0) release_lease(table, me->behind);
    me->behind = -1;
    erb_changed(table->header);
    return ERB_OK;
}

/* A reader that saw a number given out sees that its writer had opened before, or that the row is committed. `next_sequence` is
 * only ever added to, and each addition releases what its process did before: so whoever acquires the count, by then or later
 * raised, sees this store, or one that came after it. Of these, the close releases the commit. A store that is sequentially
 * consistent by itself would cost each insert a second barrier. */
void erb_open_sequence(erb_table *table, uint32_t place) {
    int64_t next = atomic_load_explicit(&table->header->next_sequence, memory_order_relaxed);
    atomic_store_explicit(&table->slots[place].open, next, memory_order_release); /* who sees it sees whose it is */
}

void erb_close_sequence(erb_table *table, uint32_t place, int64_t from) {
    atomic_store_explicit(&table->slots[place].open, from, memory_order_release);
}

/* A writer that died between a commit and the close commits no more: its rows, and those of all others that came after, must not
 * wait until somebody recovers it. If its place was given to another in the meantime, that one had nothing open yet, or `open` is
 * that one's, and then so is what `erb_is_dead` looks at. */
int64_t erb_horizon(erb_table *table) {
    int64_t horizon = atomic_load_explicit(&table->header->next_sequence, memory_order_seq_cst);
    for (uint32_t place = 0; place < table->writer_slots; place++) {
        const erb_slot *slot = &table->slots[place];
        if (!atomic_load_explicit(&slot->writer, memory_order_acquire)) continue;
        int64_t open = atomic_load_explicit(&slot->open, memory_order_seq_cst);
        if (open < horizon && !erb_is_dead(table, place)) horizon = open;
    }
    return horizon;
}

int erb_mark(erb_table *table, uint32_t place, uint8_t flags) {
    const erb_writer *me = &table->writers[place];
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    if (me->last_row >= 0) atomic_fetch_or_explicit(&table->flags[me->last_row], flags, memory_order_relaxed);
    return ERB_OK;
}

/* Whether the rows of this generation end with one of this writer's, and where. */
static bool last_row_of(const erb_table *table, uint64_t chunk, uint64_t stamp, int64_t writer, int64_t *row) {
    uint64_t generation, rows;
    if (split(table, chunk, stamp, &generation, &rows) || !rows) return false;
    if (atomic_load_explicit(&table->chunks[chunk].of[generation & 1].writer, memory_order_relaxed) != writer) return false;
    *row = (int64_t)(chunk * table->chunk_rows + rows - 1);
    return stamp - 1 + stride(table) >= atomic_load_explicit(&table->chunks[chunk].reserved, memory_order_relaxed);
}

static void release_leases(erb_table *table, uint32_t place, int64_t but) {
    for (int64_t chunk = 0; chunk < (int64_t)table->chunk_count; chunk++)
        if (chunk != but && (atomic_load_explicit(&table->chunks[chunk].lease, memory_order_relaxed) & PLACE_MASK) == place + 1u)
            release_lease(table, chunk);
}

/* End the open episode of a writer that writes no more, and let its chunks go. They are the caller's alone meanwhile. That of its
 * last row goes last: who begins this again after a death must find the same row. */
void erb_release_chunks(erb_table *table, uint32_t place) {
    int64_t writer = atomic_load_explicit(&table->slots[place].writer, memory_order_relaxed), last = -1, row;
    for (uint64_t chunk = 0; chunk < table->chunk_count; chunk++) {
        erb_chunk *c = &table->chunks[chunk];
        if ((atomic_load_explicit(&c->lease, memory_order_acquire) & PLACE_MASK) != place + 1u) continue;
        uint64_t ends[2] = {atomic_load_explicit(&c->ended, memory_order_relaxed), atomic_load_explicit(&c->committed, memory_order_acquire)};
        for (int i = 0; i < 2; i++)
            if (last_row_of(table, chunk, ends[i], writer, &row) && (last < 0 || table->sequence[row] > table->sequence[last])) last = row;
    }
    if (last >= 0 && !(atomic_load_explicit(&table->flags[last], memory_order_relaxed) & ERB_LAST))
        atomic_fetch_or_explicit(&table->flags[last], ERB_LAST | ERB_TRUNCATED, memory_order_relaxed);
    int64_t total = erb_total(table, place);
    erb_cursor_settle(table, writer, total);
    erb_grant_settle(table, place, total);
    release_leases(table, place, last < 0 ? -1 : last / (int64_t)table->chunk_rows);
    release_leases(table, place, -1);
}

/* The rows that a writer has committed up to the end of what a chunk holds; -1: it is another's now. */
static int64_t total_in(const erb_table *table, uint64_t chunk, int64_t writer) {
    const erb_chunk *c = &table->chunks[chunk];
    uint64_t generation, rows, again;
    int64_t before;
    do { /* until the generation stood still meanwhile */
        if (split(table, chunk, atomic_load_explicit(&c->committed, memory_order_acquire), &generation, &rows)) return -1;
        const erb_generation *of = &c->of[generation & 1];
        if (atomic_load_explicit(&of->writer, memory_order_relaxed) != writer) return -1;
        before = atomic_load_explicit(&of->writer_rows, memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        again = atomic_load_explicit(&c->committed, memory_order_relaxed);
    } while (again >> table->stride_bits != generation);
    return before + (int64_t)rows;
}

/* The slot names a chunk from when its generation is begun, and before anything is committed there, until the next is begun, whose
 * first commit comes before this chunk is let go. So at any moment it says all that is committed; if the writer goes on while we look,
 * it says all that was when we began, or is another's and the slot names the next one. What was claimed and not begun has no say. */
int64_t erb_total(const erb_table *table, uint32_t place) {
    const erb_slot *slot = &table->slots[place];
    int64_t writer = atomic_load_explicit(&slot->writer, memory_order_acquire), chunk, total;
    do {
        chunk = atomic_load_explicit(&slot->chunk, memory_order_acquire) - 1;
        if (chunk < 0 || (uint64_t)chunk >= table->chunk_count) return 0;
        total = total_in(table, (uint64_t)chunk, writer);
    } while (total < 0 && atomic_load_explicit(&slot->chunk, memory_order_acquire) - 1 != chunk);
    return total < 0 ? 0 : total;
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

size_t erb_max_spans(const erb_table *table) { return 2 * table->chunk_count; }

/* The rows of the generation that ends at stamp `end`, without those that `reserved` says are overwritten. Returns how many
 * there are, or an erb_status. */
static int64_t rows_left(const erb_table *table, uint64_t chunk, uint64_t end, uint64_t reserved, erb_span *span) {
    uint64_t generation, rows, gone = 0, next;
    if (split(table, chunk, end, &generation, &rows)) return ERB_DAMAGED;
    next = (generation + 1) << table->stride_bits;
    if (reserved > next) gone = reserved - next;
    if (gone >= rows) return 0;
    span->row = (int64_t)(chunk * table->chunk_rows + gone);
    span->stamp = (int64_t)((generation << table->stride_bits) + gone);
    span->end = (int64_t)(rows - gone); /* of itself, until the runs before are known */
    return span->end;
}

/* The runs of one chunk: what is left of the generation before, and the present one. */
static int runs_of(const erb_table *table, uint64_t chunk, erb_span *before, int64_t *rows_before, erb_span *now, int64_t *rows_now) {
    const erb_chunk *c = &table->chunks[chunk];
    uint64_t committed = atomic_load_explicit(&c->committed, memory_order_acquire);
    uint64_t ended = atomic_load_explicit(&c->ended, memory_order_acquire);
    uint64_t reserved = atomic_load_explicit(&c->reserved, memory_order_acquire);
    bool is_older = ended >> table->stride_bits < committed >> table->stride_bits;
    *rows_before = is_older ? rows_left(table, chunk, ended, reserved, before) : 0;
    *rows_now = rows_left(table, chunk, committed, reserved, now);
    return *rows_before < 0 || *rows_now < 0 ? ERB_DAMAGED : ERB_OK;
}

/* Each value proves by itself that rows were committed once; whether they still stand is asked after they were copied. */
int erb_snapshot(const erb_table *table, erb_span *spans, size_t *count) {
    uint64_t chunk = atomic_load_explicit(&table->header->hand, memory_order_relaxed) % table->chunk_count;
    size_t older = 0, newer = table->chunk_count; /* filled from the front and from the middle, then joined */
    for (uint64_t i = 0; i < table->chunk_count; i++, chunk = chunk + 1 < table->chunk_count ? chunk + 1 : 0) {
        int64_t rows_before, rows_now;
        if (runs_of(table, chunk, &spans[older], &rows_before, &spans[newer], &rows_now)) return ERB_DAMAGED;
        older += rows_before > 0;
        newer += rows_now > 0;
    }
    memmove(&spans[older], &spans[table->chunk_count], (newer - table->chunk_count) * sizeof *spans);
    *count = older + newer - table->chunk_count;
    for (size_t i = 1; i < *count; i++) spans[i].end += spans[i - 1].end;
    return ERB_OK;
}

/* The run in which a position lies. Most runs are whole chunks, so the guess is right or nearly so. */
static size_t run_at(const erb_span *spans, size_t count, double runs_per_row, int64_t position) {
    size_t low = 0, high = count - 1, guess = (size_t)((double)position * runs_per_row);
    if (guess > high) guess = high;
    for (int tries = 0; tries < 4; tries++) {
        if (spans[guess].end <= position) low = ++guess;
        else if (guess > 0 && spans[guess - 1].end > position) high = --guess;
        else return guess;
    }
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (spans[middle].end <= position) low = middle + 1;
        else high = middle;
    }
    return low;
}

static int resolve_one(const erb_span *spans, size_t count, double runs_per_row, int64_t position, int64_t *row, int64_t *stamp) {
    if (position < 0 || position >= spans[count - 1].end) return ERB_DAMAGED;
    size_t run = run_at(spans, count, runs_per_row, position);
    int64_t offset = position - (run ? spans[run - 1].end : 0);
    *row = spans[run].row + offset;
    *stamp = spans[run].stamp + offset;
    return ERB_OK;
}

static double runs_per_row(const erb_span *spans, size_t count) { return (double)count / (double)spans[count - 1].end; }

int erb_resolve(const erb_span *spans, size_t count, const int64_t *positions, size_t n,
                int64_t *rows, int64_t *stamps) {
    if (n && !count) return ERB_DAMAGED;
    double density = n ? runs_per_row(spans, count) : 0;
    for (size_t i = 0; i < n; i++)
        if (resolve_one(spans, count, density, positions[i], &rows[i], &stamps[i])) return ERB_DAMAGED;
    return ERB_OK;
}

int erb_draw_from(const erb_span *spans, size_t count, const double *shares, size_t n, int64_t *rows, int64_t *stamps) {
    double total = (double)spans[count - 1].end, density = runs_per_row(spans, count);
    int64_t stamp;
    for (size_t i = 0; i < n; i++) {
        if (!(shares[i] >= 0 && shares[i] < 1)) return ERB_DAMAGED;
        if (resolve_one(spans, count, density, (int64_t)(shares[i] * total), &rows[i], stamps ? &stamps[i] : &stamp)) return ERB_DAMAGED;
    }
    return ERB_OK;
}

int erb_draw(const erb_table *table, const double *shares, size_t n, int64_t *rows, int64_t *stamps, int64_t *total) {
    erb_span *spans = malloc(erb_max_spans(table) * sizeof *spans);
    if (!spans) return ERB_SYSTEM;
    size_t count;
    int status = erb_snapshot(table, spans, &count);
    *total = !status && count ? spans[count - 1].end : 0;
    if (*total) status = erb_draw_from(spans, count, shares, n, rows, stamps);
    for (size_t i = 0; !status && *total && table->chunk_frames && i < n; i++) __builtin_prefetch(&table->frame[rows[i]]);
    free(spans);
    return status;
}

int erb_intact(const erb_table *table, const int64_t *rows, const int64_t *stamps, size_t n, uint8_t *out, size_t *lost) {
    atomic_thread_fence(memory_order_acquire); /* the rows were read before; if they were new, so is `reserved` */
    *lost = 0;
    for (size_t i = 0; i < n; i++) {
        if (rows[i] < 0 || (uint64_t)rows[i] >= table->capacity) return ERB_DAMAGED;
        const erb_chunk *c = &table->chunks[(uint64_t)rows[i] / table->chunk_rows];
        out[i] = atomic_load_explicit(&c->reserved, memory_order_relaxed) <= (uint64_t)stamps[i] + stride(table);
        *lost += !out[i];
    }
    return ERB_OK;
}

int erb_previous(const erb_table *table, int64_t row, int64_t stamp, int64_t previous[3]) {
    if (row < 0 || (uint64_t)row >= table->capacity) return ERB_DAMAGED;
    const erb_generation *of = &table->chunks[(uint64_t)row / table->chunk_rows].of[((uint64_t)stamp >> table->stride_bits) & 1];
    previous[0] = atomic_load_explicit(&of->previous_chunk, memory_order_relaxed);
    previous[1] = (int64_t)atomic_load_explicit(&of->previous_generation, memory_order_relaxed);
    previous[2] = atomic_load_explicit(&of->previous_rows, memory_order_relaxed);
    return previous[0] >= -1 && previous[0] < (int64_t)table->chunk_count ? ERB_OK : ERB_DAMAGED;
}

static int64_t last_sequence(const erb_table *table, const erb_span *run, int64_t rows) {
    return rows > 0 ? table->sequence[run->row + rows - 1] : -1;
}

static int count_chunk(const erb_table *table, uint64_t chunk, erb_counts *out) {
    const erb_chunk *c = &table->chunks[chunk];
    uint64_t generation, rows, again;
    int64_t before, rows_before, rows_now;
    erb_span older, newer;
    do { /* until the generation stood still meanwhile */
        if (split(table, chunk, atomic_load_explicit(&c->committed, memory_order_acquire), &generation, &rows)) return ERB_DAMAGED;
        before = atomic_load_explicit(&c->of[generation & 1].rows_before, memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        again = atomic_load_explicit(&c->committed, memory_order_relaxed);
    } while (again >> table->stride_bits != generation);
    if (runs_of(table, chunk, &older, &rows_before, &newer, &rows_now)) return ERB_DAMAGED;
    int64_t newest = last_sequence(table, &newer, rows_now), old = last_sequence(table, &older, rows_before);
    if (old > newest) newest = old;
    if (newest > out->newest) out->newest = newest;
    out->inserted += before + (int64_t)rows;
    out->held += rows_before + rows_now;
    return ERB_OK;
}

int erb_count(const erb_table *table, erb_counts *out) {
    memset(out, 0, sizeof *out);
    out->newest = -1;
    for (uint64_t chunk = 0; chunk < table->chunk_count; chunk++)
        if (count_chunk(table, chunk, out)) return ERB_DAMAGED;
    for (uint64_t place = 0; place < table->writer_slots; place++)
        out->writers += atomic_load_explicit(&table->slots[place].writer, memory_order_relaxed) != 0;
    out->sampled = atomic_load_explicit(&table->header->sampled, memory_order_relaxed);
    out->redrawn = atomic_load_explicit(&table->header->redrawn, memory_order_relaxed);
    return ERB_OK;
}

void erb_tally(erb_table *table, int64_t sampled, int64_t redrawn) {
    atomic_fetch_add_explicit(&table->header->sampled, sampled, memory_order_relaxed);
    if (redrawn) atomic_fetch_add_explicit(&table->header->redrawn, redrawn, memory_order_relaxed);
    erb_changed(table->header);
}
