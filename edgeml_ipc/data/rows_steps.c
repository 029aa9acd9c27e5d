/* Steps: the episodes of the rows that were held at one moment, followed through chunks that lie anywhere.
 *
 * A writer fills one chunk after the other, and each generation of a chunk names the one that its writer filled before. So the
 * runs of a snapshot make chains; along a chain each row has a *rank*, in the order in which its writer wrote:
 *
 *   chunk       7          2          5           |  4          9
 *   writer      A          A          A           |  B          B
 *   rank        0 .. 7     8 .. 15    16 .. 20    |  21 .. 28   29 .. 31
 *   position    3 4 5 0 1 2 3 ...                 |  a row and the k-th after it are of one episode if position rises by k
 *
 * Rows may be overwritten while this is read. What was read of a row that still stands afterwards was right, so whoever uses rows
 * asks erb_steps_intact after the copy, of every row that it copied and of all that had to be there: they stand, and their positions
 * are as far apart as their ranks. (A row that had to be there when its window was drawn can be gone when the window is picked, and
 * would be masked.) Nothing here writes to shared memory.
 */
#include "rows.h"

#include <stdlib.h>
#include <string.h>

#define NONE (-1)

typedef erb_run run;

/* Which run of each chunk is of the newer generation, and which of the one before. */
static void runs_by_chunk(erb_steps *s) {
    memset(s->newer, 0xff, s->table->chunk_count * sizeof *s->newer);
    memset(s->older, 0xff, s->table->chunk_count * sizeof *s->older);
    for (size_t i = 0; i < s->count; i++) {
        uint64_t chunk = (uint64_t)s->runs[i].row / s->table->chunk_rows;
        int32_t *newer = &s->newer[chunk], *older = &s->older[chunk];
        bool is_older = *newer != NONE && s->runs[*newer].stamp > s->runs[i].stamp;
        if (is_older) {
            *older = (int32_t)i;
        } else {
            *older = *newer;
            *newer = (int32_t)i;
        }
    }
}

/* The run that `r` goes on from: all of that one's rows are there, and the first of this one. */
static int32_t before(const erb_steps *s, const run *r) {
    const erb_table *t = s->table;
    int64_t previous[3], last = r->row + r->count - 1, stamp = r->stamp + r->count - 1;
    uint8_t stands;
    size_t lost;
    if ((uint64_t)r->row % t->chunk_rows || erb_previous(t, r->row, r->stamp, previous) || previous[0] < 0) return NONE;
    /* The link is true if it was read before the generation after the next began: while the last row stands. */
    if (erb_intact(t, &last, &stamp, 1, &stands, &lost) || !stands) return NONE;
    int32_t found[2] = {s->newer[previous[0]], s->older[previous[0]]};
    for (int i = 0; i < 2; i++) {
        if (found[i] == NONE) continue;
        const run *p = &s->runs[found[i]];
        if (p->stamp >> t->stride_bits == previous[1] && p->row + p->count == previous[0] * (int64_t)t->chunk_rows + previous[2]) return found[i];
    }
    return NONE;
}

/* Number the rows of the chain that begins with run `i` from rank `*rank` on. */
static void number_chain(erb_steps *s, int32_t i, int64_t *rank, size_t *placed) {
    int64_t begin = *rank;
    size_t first = *placed;
    for (; i != NONE; i = s->runs[i].next) {
        s->runs[i].rank = *rank;
        s->runs[i].chain_begin = begin;
        *rank += s->runs[i].count;
        s->by_rank[(*placed)++] = i;
    }
    for (size_t k = first; k < *placed; k++) s->runs[s->by_rank[k]].chain_end = *rank;
}

int erb_steps_open(const erb_table *table, const erb_span *spans, size_t count, erb_steps *s) {
    uint64_t chunks = table->chunk_count;
    if (count > erb_max_spans(table)) return ERB_DAMAGED;
    *s = (erb_steps){.table = table, .count = count};
    s->runs = malloc((count + 1) * (sizeof *s->runs + sizeof *spans) + (2 * chunks + count) * sizeof(int32_t));
    if (!s->runs) return ERB_SYSTEM;
    s->spans = (erb_span *)(s->runs + count + 1);
    if (count) memcpy(s->spans, spans, count * sizeof *spans);
    s->newer = (int32_t *)(s->spans + count + 1);
    s->older = s->newer + chunks;
    s->by_rank = s->older + chunks;
    for (size_t i = 0; i < count; i++) {
        int64_t rows = spans[i].end - s->total;
        if (rows < 1 || spans[i].row < 0 || spans[i].row > (int64_t)table->capacity - rows || spans[i].stamp < 0) {
            erb_steps_close(s);
            return ERB_DAMAGED;
        }
        s->runs[i] = (run){.row = spans[i].row, .stamp = spans[i].stamp, .count = rows, .previous = NONE, .next = NONE, .rank = NONE};
        s->total = spans[i].end;
    }
    runs_by_chunk(s);
    for (size_t i = 0; i < count; i++) {
        int32_t p = before(s, &s->runs[i]);
        if (p == NONE || p == (int32_t)i || s->runs[p].next != NONE) continue;
        s->runs[i].previous = p;
        s->runs[p].next = (int32_t)i;
    }
    int64_t rank = 0;
    size_t placed = 0;
    for (size_t i = 0; i < count; i++)
        if (s->runs[i].previous == NONE) number_chain(s, (int32_t)i, &rank, &placed);
    if (placed == count) return ERB_OK;
    erb_steps_close(s); /* links in a circle, which no writer makes */
    return ERB_DAMAGED;
}

void erb_steps_close(erb_steps *s) {
    free(s->runs);
    s->runs = NULL;
}

/* ---- finding rows --------------------------------------------------------------------------------------------------- */

static bool in_run(const run *r, int64_t row) { return row >= r->row && row < r->row + r->count; }

/* The run that holds a row, NULL for none. */
static const run *run_of(const erb_steps *s, int64_t row) {
    if (row < 0 || row >= (int64_t)s->table->capacity) return NULL;
    uint64_t chunk = (uint64_t)row / s->table->chunk_rows;
    int32_t newer = s->newer[chunk], older = s->older[chunk];
    if (newer != NONE && in_run(&s->runs[newer], row)) return &s->runs[newer];
    return older != NONE && in_run(&s->runs[older], row) ? &s->runs[older] : NULL;
}

/* The same, where it is often the run of the row before. */
static const run *run_near(const erb_steps *s, const run *near, int64_t row) { return near && in_run(near, row) ? near : run_of(s, row); }

static int64_t rank_of(const run *r, int64_t row) { return r->rank + row - r->row; }

static int64_t held_before(const erb_steps *s, const run *r, int64_t row) {
    int64_t position = s->table->position[row], rows = rank_of(r, row) - r->chain_begin;
    return position < 0 ? 0 : position < rows ? position : rows;
}

/* How many rows of the run from `row` on have positions that rise from `position` on; the first of them has it. At most `limit`. */
static int64_t alike_in_run(const erb_steps *s, const run *r, int64_t row, int64_t position, int64_t limit) {
    const int32_t *positions = s->table->position;
    int64_t low = 0, high = r->row + r->count - row, step = 1; /* alike at `low`, not at `high` */
    if (high > limit) high = limit;
    if (high > 0 && positions[row + high - 1] == position + high - 1) return high;
    while (high - low > 1) {
        int64_t middle = low + step < (low + high) / 2 ? low + step : (low + high) / 2;
        if (positions[row + middle] == position + middle) {
            low = middle;
            step *= 2;
        } else {
            high = middle;
            step = high - low; /* from now on by halves */
        }
    }
    return low + 1;
}

/* How many rows after this one are of its episode; no more than `limit` are looked for. */
static int64_t held_after(const erb_steps *s, const run *r, int64_t row, int64_t limit) {
    int64_t position = s->table->position[row], found = 0;
    for (;;) {
        int64_t there = r->row + r->count - row;
        int64_t alike = alike_in_run(s, r, row, position + found, limit + 1 - found);
        found += alike;
        if (alike < there || found > limit || r->next == NONE) return found - 1 < limit ? found - 1 : limit;
        r = &s->runs[r->next];
        row = r->row;
        if (s->table->position[row] != position + found) return found - 1;
    }
}

/* Go `offset` rows along the chain; NULL: it is not as long. */
static const run *go(const erb_steps *s, const run *r, int64_t *row, int64_t offset) {
    *row += offset;
    while (*row >= r->row + r->count) {
        int64_t past = *row - r->row - r->count;
        if (r->next == NONE) return NULL;
        r = &s->runs[r->next];
        *row = r->row + past;
    }
    while (*row < r->row) {
        int64_t short_of = r->row - *row;
        if (r->previous == NONE) return NULL;
        r = &s->runs[r->previous];
        *row = r->row + r->count - short_of;
    }
    return r;
}

/* ---- drawing ---------------------------------------------------------------------------------------------------------- */

int erb_steps_draw(const erb_steps *s, const double *shares, size_t n, int64_t first, int64_t last, int64_t min_length, int64_t *anchors,
                   size_t *found) {
    *found = 0;
    int status = erb_draw_from(s->spans, s->count, shares, n, anchors, NULL);
    for (size_t i = 0; !status && i < n; i++) __builtin_prefetch(&s->table->position[anchors[i]]);
    if (status) return status;
    for (size_t i = 0; i < n; i++) {
        int64_t row = anchors[i], before;
        const run *r = run_of(s, row);
        if ((before = held_before(s, r, row)) < last - first) continue;
        if (before + 1 < min_length && before + 1 + held_after(s, r, row, min_length) < min_length) continue;
        if (!go(s, r, &row, -last)) return ERB_DAMAGED;
        anchors[(*found)++] = row;
    }
    return ERB_OK;
}

/* ---- what samplers ask ----------------------------------------------------------------------------------------------- */

int erb_steps_tell(const erb_steps *s, erb_question question, const int64_t *rows, size_t n, int64_t *out) {
    const run *r = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!(r = run_near(s, r, rows[i]))) return ERB_DAMAGED;
        switch (question) {
        case ERB_BEFORE: out[i] = held_before(s, r, rows[i]); break;
        case ERB_AFTER: out[i] = held_after(s, r, rows[i], INT32_MAX); break;
        case ERB_RANK: out[i] = rank_of(r, rows[i]); break;
        case ERB_STAMP: out[i] = r->stamp + rows[i] - r->row; break;
        }
    }
    return ERB_OK;
}

void erb_steps_holds(const erb_steps *s, const int64_t *rows, size_t n, uint8_t *out) {
    for (size_t i = 0; i < n; i++) out[i] = run_of(s, rows[i]) != NULL;
}

int erb_steps_shift(const erb_steps *s, const int64_t *rows, const int64_t *offsets, size_t n, int64_t *out) {
    for (size_t i = 0; i < n; i++) {
        const run *r = run_of(s, rows[i]);
        out[i] = rows[i];
        if (!r || !go(s, r, &out[i], offsets[i])) return ERB_DAMAGED;
    }
    return ERB_OK;
}

int erb_steps_reach(const erb_steps *s, const int64_t *anchors, size_t n, int64_t begin, int64_t end, int64_t *rows, uint8_t *mask) {
    size_t size = (size_t)(end - begin);
    for (size_t i = 0; i < n; i++, rows += size, mask += size) {
        const run *r = run_of(s, anchors[i]);
        if (!r) return ERB_DAMAGED;
        int64_t low = begin, high = end - 1, row = anchors[i]; /* the first and the last that are there, from the anchor */
        if (low < 0) {
            int64_t held = held_before(s, r, row);
            low = low < -held ? -held : low;
        }
        if (high > 0) high = held_after(s, r, row, high);
        if (low != begin || high != end - 1) {
            memset(rows, 0xff, size * sizeof *rows); /* NONE */
            memset(mask, 0, size);
        }
        if (low > high) continue;
        memset(mask + (low - begin), 1, (size_t)(high - low + 1));
        if (!(r = go(s, r, &row, low))) return ERB_DAMAGED;
        for (int64_t k = low; k <= high; k++, row++) {
            if (row == r->row + r->count) {
                if (r->next == NONE) return ERB_DAMAGED;
                r = &s->runs[r->next];
                row = r->row;
            }
            rows[k - begin] = row;
        }
    }
    return ERB_OK;
}

/* ---- afterwards ------------------------------------------------------------------------------------------------------ */

static uint64_t reserved_of(const erb_steps *s, const run *r) {
    return atomic_load_explicit(&s->table->chunks[(uint64_t)r->row / s->table->chunk_rows].reserved, memory_order_relaxed);
}

static bool stands(const erb_steps *s, const run *r, int64_t row, uint64_t reserved) {
    return reserved <= (uint64_t)(r->stamp + row - r->row) + ((uint64_t)1 << s->table->stride_bits);
}

/* Whether all rows from the `first` to the `last` after a row stand. Of a run the first one goes first. */
static bool window_stands(const erb_steps *s, const run *r, int64_t row, int64_t first, int64_t last) {
    int64_t left = last - first + 1;
    if (!(r = go(s, r, &row, first))) return false;
    for (;;) {
        if (!stands(s, r, row, reserved_of(s, r))) return false;
        left -= r->row + r->count - row;
        if (left <= 0) return true;
        if (r->next == NONE) return false;
        r = &s->runs[r->next];
        row = r->row;
    }
}

int erb_steps_intact(const erb_steps *s, const int64_t *anchors, const int64_t *rows, size_t n, size_t size, int64_t first, int64_t last,
                     uint8_t *out) {
    const int32_t *positions = s->table->position;
    atomic_thread_fence(memory_order_acquire); /* the rows were copied before; if what was copied is new, so is `reserved` */
    for (size_t i = 0; i < n; i++, rows += size) {
        const run *r = run_of(s, anchors[i]);
        if (!r) return ERB_DAMAGED;
        int64_t begins = positions[anchors[i]] - rank_of(r, anchors[i]);
        uint64_t reserved = reserved_of(s, r);
        out[i] &= window_stands(s, r, anchors[i], first, last);
        for (size_t k = 0; k < size; k++) {
            if (rows[k] == NONE) continue;
            if (!in_run(r, rows[k])) {
                if (!(r = run_of(s, rows[k]))) return ERB_DAMAGED;
                reserved = reserved_of(s, r);
            }
            out[i] &= stands(s, r, rows[k], reserved) && positions[rows[k]] - rank_of(r, rows[k]) == begins;
        }
    }
    return ERB_OK;
}
