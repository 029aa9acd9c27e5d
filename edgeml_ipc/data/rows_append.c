/* Transitions into rows, and their observations into frames, each stored once.
 *
 * A chunk has a ring of `chunk_frames` frames beside its rows. An observation is `stack` frames that follow one another; the one
 * after a row's own begins one frame later, so that T steps of an episode take stack + T frames:
 *
 *   stack = 1      frame        0   1   2   3 | 4   5          stack = 3     frame   0   1   2   3   4
 *                  row 0 own    ^                                            row 0   [-------]
 *                        next       ^                                        next        [-------]
 *                  row 1 own        ^                                        row 1       [-------]
 *                        next           ^                                    next            [-------]
 *                  row 2            ^own ^next, the last of its episode
 *                  row 3                        ^own ^next
 *
 * A row whose observation is not the one that was given as the following one of the row before begins anew: all frames of it
 * are stored. An observation that follows, but does not share stack - 1 frames with the row's own, is stored whole behind it,
 * and the row is ERB_DETACHED. So whatever is given is kept; what is alike is kept once. Where frames run out before rows do,
 * the chunk is closed early. A new generation goes on in the ring where the one before ended.
 *
 * Where the following observation is not given, it is that of the next row; until that is there the row is `pending`:
 * written, and not committed.
 */
#include "rows.h"

#include <string.h>

#define RUN 64u

enum { FRESH = 1, DETACHED = 2 };

/* What becomes of the next rows of an input, all in one chunk. */
typedef struct {
    uint64_t rows, frames; /* how many fit; frames used afterwards */
    uint32_t frame[RUN];   /* of each row's own observation, its newest; counted from frames_begin */
    uint8_t how[RUN];
    bool has_next[RUN];
    uint8_t pending_how;
} plan;

static uint64_t used_rows(const erb_table *table, const erb_writer *me) {
    return (me->committed & (((uint64_t)1 << table->stride_bits) - 1)) + me->pending;
}

static bool is_framed(const erb_column *column) { return column->kind != ERB_ROWS; }

static uint64_t frame_bytes(const erb_table *table, const erb_column *column) {
    return column->kind == ERB_STACKS ? column->item_bytes / table->stack : column->item_bytes;
}

/* The frame that is the `index`-th of this generation. */
static uint8_t *frame_at(const erb_table *table, const erb_writer *me, const erb_column *column, uint64_t index) {
    uint64_t place = erb_in_ring(me->frames_begin + index, table->chunk_frames);
    return column->base + ((uint64_t)me->chunk * table->chunk_frames + place) * frame_bytes(table, column);
}

/* ---- frames of an item: in ERB_STACKS they are interleaved, in runs of run_bytes ------------------------------------ */

static void put_frame(const erb_table *table, const erb_column *column, uint8_t *to, const uint8_t *item, uint64_t number) {
    if (column->kind == ERB_FRAMES) {
        memcpy(to, item, column->item_bytes);
        return;
    }
    uint64_t run = column->run_bytes, step = run * table->stack, runs = frame_bytes(table, column) / run;
    item += number * run;
    if (run == 1)
        for (uint64_t i = 0; i < runs; i++) to[i] = item[i * step];
    else
        for (uint64_t i = 0; i < runs; i++) memcpy(to + i * run, item + i * step, run);
}

static bool is_frame(const erb_table *table, const erb_column *column, const uint8_t *frame, const uint8_t *item, uint64_t number) {
    if (column->kind == ERB_FRAMES) return memcmp(frame, item, column->item_bytes) == 0;
    uint64_t run = column->run_bytes, step = run * table->stack, runs = frame_bytes(table, column) / run;
    item += number * run;
    uint8_t differs = 0;
    if (run == 1)
        for (uint64_t i = 0; i < runs; i++) differs |= frame[i] ^ item[i * step];
    else
        for (uint64_t i = 0; i < runs && !differs; i++) differs |= memcmp(frame + i * run, item + i * step, run) != 0;
    return !differs;
}

/* Whether frame `a` of one item is frame `b` of another. */
static bool same_frame(const erb_table *table, const erb_column *column, const uint8_t *one, uint64_t a, const uint8_t *other, uint64_t b) {
    uint64_t run = column->run_bytes, step = run * table->stack, runs = frame_bytes(table, column) / run;
    one += a * run;
    other += b * run;
    uint8_t differs = 0;
    if (run == 1)
        for (uint64_t i = 0; i < runs; i++) differs |= one[i * step] ^ other[i * step];
    else
        for (uint64_t i = 0; i < runs && !differs; i++) differs |= memcmp(one + i * step, other + i * step, run) != 0;
    return !differs;
}

/* ---- comparing ------------------------------------------------------------------------------------------------------ */

static const uint8_t *item_of(const uint8_t *values, const erb_column *column, uint64_t row) { return values + row * column->item_bytes; }

/* The observation after row `row` of the input, NULL if it is not there. */
static const uint8_t *next_of(const erb_table *table, const erb_input *in, size_t c, uint64_t row, uint64_t rows) {
    if (in->nexts) return item_of(in->nexts[c], &table->columns[c], row);
    return row + 1 < rows && !in->ended[row] ? item_of(in->values[c], &table->columns[c], row + 1) : NULL;
}

/* Whether the observation of a row is the one whose newest frame is the last of this generation. */
static bool is_stored(const erb_table *table, const erb_writer *me, const erb_input *in, uint64_t row) {
    for (size_t c = 0; c < table->column_count; c++) {
        const erb_column *column = &table->columns[c];
        if (!is_framed(column)) continue;
        uint64_t frames = column->kind == ERB_STACKS ? table->stack : 1;
        for (uint64_t k = 0; k < frames; k++)
            if (!is_frame(table, column, frame_at(table, me, column, me->frames_used - 1 - k), item_of(in->values[c], column, row), frames - 1 - k))
                return false;
    }
    return true;
}

static bool is_next_of_before(const erb_table *table, const erb_input *in, uint64_t row) {
    if (!in->nexts) return true;
    for (size_t c = 0; c < table->column_count; c++) {
        const erb_column *column = &table->columns[c];
        if (is_framed(column) && memcmp(item_of(in->nexts[c], column, row - 1), item_of(in->values[c], column, row), column->item_bytes) != 0)
            return false;
    }
    return true;
}

/* Whether an observation of the input shares all frames but one with the one before it. */
static bool is_shifted(const erb_table *table, const erb_input *in, uint64_t row, uint64_t rows) {
    for (size_t c = 0; table->stack > 1 && c < table->column_count; c++) {
        const erb_column *column = &table->columns[c];
        if (column->kind != ERB_STACKS) continue;
        const uint8_t *own = item_of(in->values[c], column, row), *next = next_of(table, in, c, row, rows);
        for (uint64_t k = 0; k + 1 < table->stack; k++)
            if (!same_frame(table, column, own, k + 1, next, k)) return false;
    }
    return true;
}

/* The same for the row that is pending, and the first observation of the input. */
static bool is_shifted_from_stored(const erb_table *table, const erb_writer *me, const erb_input *in, uint64_t row) {
    for (size_t c = 0; table->stack > 1 && c < table->column_count; c++) {
        const erb_column *column = &table->columns[c];
        if (column->kind != ERB_STACKS) continue;
        for (uint64_t k = 0; k + 1 < table->stack; k++)
            if (!is_frame(table, column, frame_at(table, me, column, me->frames_used - 1 - k), item_of(in->values[c], column, row), table->stack - 2 - k))
                return false;
    }
    return true;
}

/* ---- planning ------------------------------------------------------------------------------------------------------- */

static void plan_run(const erb_table *table, const erb_writer *me, const erb_input *in, uint64_t done, uint64_t rows, plan *p) {
    uint64_t frames = me->frames_used, stack = table->stack, room = erb_rows_in(table, (uint64_t)me->chunk) - used_rows(table, me);
    bool continues = me->continues, framed = table->chunk_frames != 0;
    p->rows = 0;
    p->pending_how = 0;
    if (me->pending) {
        p->pending_how = is_shifted_from_stored(table, me, in, done) ? 0 : DETACHED;
        frames += p->pending_how ? stack : 1;
    }
    p->frames = frames;
    if (room > rows - done) room = rows - done;
    if (room > RUN) room = RUN;
    for (uint64_t r = done; p->rows < room; r++) {
        uint64_t i = p->rows;
        p->how[i] = 0;
        p->frame[i] = 0;
        if (framed) {
            bool follows = me->pending && r == done ? true : continues && (r == done ? is_stored(table, me, in, r) : is_next_of_before(table, in, r));
            p->has_next[i] = in->nexts || (r + 1 < rows && !in->ended[r]);
            if (!follows) p->how[i] |= FRESH;
            if (p->has_next[i] && !is_shifted(table, in, r, rows)) p->how[i] |= DETACHED;
            uint64_t own = frames + (follows ? 0 : stack), after = !p->has_next[i] || p->how[i] & DETACHED ? stack : 1;
            if (own + after > table->chunk_frames) return;
            p->frame[i] = (uint32_t)(own - 1);
            frames = p->has_next[i] ? own + after : own;
            p->frames = p->has_next[i] ? frames : own + after; /* room is kept for the one that is to come */
            continues = p->has_next[i] && !in->ended[r];
        }
        p->rows++;
    }
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */

static void put_observation(const erb_table *table, const erb_writer *me, size_t c, const uint8_t *item, uint64_t newest, bool whole) {
    const erb_column *column = &table->columns[c];
    uint64_t frames = column->kind == ERB_STACKS ? table->stack : 1;
    for (uint64_t k = 0; k < (whole ? frames : 1); k++) put_frame(table, column, frame_at(table, me, column, newest - k), item, frames - 1 - k);
}

/* How many rows from `i` on only add the observation that follows them. */
static uint64_t alike_from(const plan *p, uint64_t i) {
    uint64_t from = i;
    while (i < p->rows && !p->how[i] && p->has_next[i]) i++;
    return i - from;
}

/* Items of ERB_FRAMES that follow one another, from the `first`-th frame of this generation on. */
static void put_many(const erb_table *table, const erb_writer *me, const erb_column *column, const uint8_t *items, uint64_t first, uint64_t count) {
    uint64_t place = erb_in_ring(me->frames_begin + first, table->chunk_frames), bytes = column->item_bytes;
    uint64_t before_end = table->chunk_frames - place < count ? table->chunk_frames - place : count;
    uint8_t *ring = column->base + (uint64_t)me->chunk * table->chunk_frames * bytes;
    memcpy(ring + place * bytes, items, before_end * bytes);
    memcpy(ring, items + before_end * bytes, (count - before_end) * bytes);
}

static void write_frames(const erb_table *table, const erb_writer *me, const erb_input *in, uint64_t done, uint64_t rows, const plan *p) {
    for (size_t c = 0; c < table->column_count; c++) {
        if (!is_framed(&table->columns[c])) continue;
        if (me->pending) {
            uint64_t newest = me->frames_used - 1 + (p->pending_how ? table->stack : 1);
            put_observation(table, me, c, item_of(in->values[c], &table->columns[c], done), newest, p->pending_how != 0);
        }
        for (uint64_t i = 0; i < p->rows; i++) {
            uint64_t r = done + i, alike = table->columns[c].kind == ERB_FRAMES ? alike_from(p, i) : 0;
            if (alike) { /* their following observations lie one after the other in the input, and in the frames */
                put_many(table, me, &table->columns[c], next_of(table, in, c, r, rows), p->frame[i] + 1u, alike);
                i += alike - 1;
                continue;
            }
            if (p->how[i] & FRESH) put_observation(table, me, c, item_of(in->values[c], &table->columns[c], r), p->frame[i], true);
            if (!p->has_next[i]) continue;
            bool detached = p->how[i] & DETACHED;
            put_observation(table, me, c, next_of(table, in, c, r, rows), p->frame[i] + (detached ? table->stack : 1), detached);
        }
    }
}

static uint8_t row_flags(const erb_input *in, uint64_t r, int64_t position, uint8_t how) {
    uint8_t flags = position == 0 ? ERB_FIRST : 0;
    if (how & DETACHED) flags |= ERB_DETACHED;
    if (in->ended[r]) flags |= ERB_LAST | (in->terminal[r] ? ERB_TERMINAL : ERB_TRUNCATED);
    else if (position == INT32_MAX) flags |= ERB_LAST | ERB_TRUNCATED;
    return flags;
}

static void write_rows(erb_table *table, erb_writer *me, const erb_input *in, uint64_t done, int64_t sequence, const plan *p) {
    uint64_t row = (uint64_t)me->chunk * table->chunk_rows + used_rows(table, me);
    for (size_t c = 0; c < table->column_count; c++) {
        const erb_column *column = &table->columns[c];
        if (!is_framed(column)) memcpy(column->base + row * column->item_bytes, item_of(in->values[c], column, done), p->rows * column->item_bytes);
    }
    for (uint64_t i = 0; i < p->rows; i++, row++) {
        uint8_t flags = row_flags(in, done + i, me->position, p->how[i]);
        table->sequence[row] = sequence + (int64_t)i;
        table->position[row] = (int32_t)me->position;
        table->version[row] = in->versions[done + i];
        table->writer[row] = (int32_t)me->number;
        if (table->chunk_frames) table->frame[row] = (uint16_t)erb_in_ring(me->frames_begin + p->frame[i], table->chunk_frames);
        atomic_store_explicit(&table->flags[row], flags, memory_order_relaxed);
        me->position = flags & ERB_LAST ? 0 : me->position + 1;
    }
}

static void write_run(erb_table *table, erb_writer *me, const erb_input *in, uint64_t done, uint64_t rows, const plan *p) {
    uint64_t unseen = p->rows + me->pending;
    int64_t sequence = atomic_fetch_add_explicit(&table->header->next_sequence, (int64_t)p->rows, memory_order_seq_cst);
    erb_announce(table, me, unseen, p->frames);
    if (table->chunk_frames) write_frames(table, me, in, done, rows, p);
    write_rows(table, me, in, done, sequence, p);
    if (me->pending && p->pending_how) {
        uint64_t row = (uint64_t)me->chunk * table->chunk_rows + used_rows(table, me) - 1;
        atomic_fetch_or_explicit(&table->flags[row], ERB_DETACHED, memory_order_relaxed);
    }
    bool leaves_pending = table->chunk_frames && p->rows && !p->has_next[p->rows - 1];
    me->frames_used = leaves_pending ? p->frame[p->rows - 1] + 1u : p->frames;
    me->pending = leaves_pending;
    if (leaves_pending) me->pending_sequence = sequence + (int64_t)p->rows - 1;
    me->continues = !leaves_pending && me->position > 0;
    me->open_rows = unseen - leaves_pending;
}

static int append(erb_table *table, uint32_t place, const erb_input *in, uint64_t rows) {
    erb_writer *me = &table->writers[place];
    plan p; /* plan_run and write_run look at no more of it than `rows` says: it is long, and not cleared */
    for (uint64_t done = 0; done < rows; done += p.rows) {
        p.rows = 0;
        if (me->chunk >= 0) plan_run(table, me, in, done, rows, &p);
        if (!p.rows && !(me->chunk >= 0 && me->pending)) {
            int status = erb_claim(table, place);
            if (status) return status;
            continue;
        }
        write_run(table, me, in, done, rows, &p);
        int status = erb_commit(table, place);
        if (status) return status;
    }
    return ERB_OK;
}

int erb_append(erb_table *table, uint32_t place, const erb_input *in, uint64_t rows) {
    const erb_writer *me = &table->writers[place];
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    for (uint64_t r = 0; table->chunk_frames && !in->nexts && r < rows; r++)
        if (in->ended[r]) return ERB_UNFINISHED;
    if (!me->pending) erb_open_sequence(table, place); /* else it is open yet */
    int status = append(table, place, in, rows);
    erb_close_sequence(table, place, me->pending ? me->pending_sequence : INT64_MAX);
    return status;
}

int erb_end(erb_table *table, uint32_t place) {
    erb_writer *me = &table->writers[place];
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    if (me->pending) return ERB_UNFINISHED;
    int status = me->position ? erb_mark(table, place, ERB_LAST | ERB_TRUNCATED) : ERB_OK;
    me->position = 0;
    me->continues = false;
    return status;
}

/* ---- reading -------------------------------------------------------------------------------------------------------- */

int erb_frames(const erb_table *table, const int64_t *rows, size_t n, int64_t *own, int64_t *next) {
    const uint64_t stack = table->stack, ring = table->chunk_frames;
    if (!ring) return ERB_DAMAGED;
    uint64_t chunk_begin = 0, begin = 0; /* of the chunk of the row before: windows are rows that follow one another */
    for (size_t i = 0; i < n; i++, own += stack, next += stack) {
        if (rows[i] < -1 || rows[i] >= (int64_t)table->capacity) return ERB_DAMAGED;
        if (i + 16 < n && rows[i + 16] >= 0 && rows[i + 16] < (int64_t)table->capacity) __builtin_prefetch(&table->frame[rows[i + 16]]);
        if (rows[i] < 0) {
            for (uint64_t k = 0; k < stack; k++) own[k] = next[k] = -1;
            continue;
        }
        uint64_t row = (uint64_t)rows[i], frame = table->frame[row], ahead = 1;
        if (row - chunk_begin >= table->chunk_rows) {
            chunk_begin = row - row % table->chunk_rows;
            begin = row / table->chunk_rows * ring;
        }
        if (frame >= ring) frame %= ring; /* being written, or damaged */
        if (stack > 1 && atomic_load_explicit(&table->flags[row], memory_order_relaxed) & ERB_DETACHED) ahead = stack;
        uint64_t from = frame + ring - (stack - 1), then = from + ahead;
        for (uint64_t k = 0; k < stack; k++, from++, then++) {
            if (from >= ring) from -= ring;
            while (then >= ring) then -= ring;
            own[k] = (int64_t)(begin + from);
            next[k] = (int64_t)(begin + then);
        }
    }
    return ERB_OK;
}
