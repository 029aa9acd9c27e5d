/* See kernels.h. */
#define _DEFAULT_SOURCE
#include "kernels.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* ---- gather -------------------------------------------------------------------------------------------------------- */

enum {
    LINE = 64,
    AHEAD_BYTES = 32768,        /* how far in front of the copy rows are asked for */
    AHEAD_ROWS_MAX = 128,       /* ... and how many at most */
    CACHED_BYTES = 4 << 20,     /* larger batches do not fit what a core has of the caches */
    TILE_ROWS = 256,
    ASKED_LINES_MAX = 16,       /* of a row; the hardware fetches the rest of a long one by itself */
    BYTES_PER_THREAD = 1 << 20, /* starting a thread takes as long as copying some 100 kB */
    LONG_ROW = 2048             /* shorter rows are not worth a second thread */
};

/* Into the second-level cache (locality 2), which keeps several times more misses under way than the first level does. */
static inline void ask_for(const eipc_gather_part *part, size_t i) {
    int64_t row = part->rows[i];
    if (row < 0 || (i > 0 && part->row_bytes <= LINE && row == part->rows[i - 1] + 1)) return; /* the hardware sees that by itself */
    const uint8_t *from = part->source + (size_t)row * part->stride;
    size_t lines = (((uintptr_t)from & (LINE - 1)) + part->row_bytes + LINE - 1) / LINE;
    if (lines > ASKED_LINES_MAX) lines = ASKED_LINES_MAX;
    for (size_t line = 0; line < lines; line++) __builtin_prefetch(from + line * LINE, 0, 2);
}

static size_t rows_ahead(size_t row_bytes) {
    size_t ahead = row_bytes ? AHEAD_BYTES / row_bytes : 1;
    return ahead < 1 ? 1 : ahead > AHEAD_ROWS_MAX ? AHEAD_ROWS_MAX : ahead;
}

/* Past the caches, which the batch is too large for: a line need not be read before it is written. Both ends are aligned to lines. */
static void copy_past_caches(uint8_t *to, const uint8_t *from, size_t bytes) {
#ifdef __SSE2__
    for (size_t i = 0; i < bytes; i += LINE) {
        const __m128i *source = (const __m128i *)(from + i);
        __m128i *target = (__m128i *)(to + i);
        __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1), c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
#else
    memcpy(to, from, bytes);
#endif
}

/* Copy rows [begin, end), and ask for those behind, up to `last`. Inlined with constant sizes below, so that a short row is a load and
 * a store. What the parts say is copied first: bytes that are written might be theirs, as far as the compiler knows. */
static inline __attribute__((always_inline)) void copy_rows(const eipc_gather_part *part, size_t begin, size_t end, size_t last, size_t row_bytes,
                                                            bool past_caches) {
    const eipc_gather_part p = *part;
    const size_t ahead = rows_ahead(row_bytes);
    const bool packed = row_bytes <= LINE / 2 && p.stride == row_bytes && !p.at; /* short rows that follow one another are copied at once */
    for (size_t i = begin; i < end; i++) {
        if (i + ahead < last) ask_for(&p, i + ahead);
        if (packed && i + 1 < end && p.rows[i] >= 0 && p.rows[i + 1] == p.rows[i] + 1) {
            size_t from = i;
            for (i++; i + 1 < end && p.rows[i + 1] == p.rows[i] + 1; i++)
                if (i + ahead < last) ask_for(&p, i + ahead);
            memcpy(p.out + from * row_bytes, p.source + (size_t)p.rows[from] * row_bytes, (i + 1 - from) * row_bytes);
            continue;
        }
        int64_t row = p.rows[i];
        uint8_t *to = p.out + (p.at ? (size_t)p.at[i] : i) * row_bytes;
        if (row < 0) memset(to, 0, row_bytes);
        else if (past_caches) copy_past_caches(to, p.source + (size_t)row * p.stride, row_bytes);
        else memcpy(to, p.source + (size_t)row * p.stride, row_bytes);
    }
}

static void copy_some(const eipc_gather_part *part, size_t begin, size_t end, size_t last, bool past_caches) {
    if (past_caches && part->row_bytes % LINE == 0) {
        copy_rows(part, begin, end, last, part->row_bytes, true);
        return;
    }
    switch (part->row_bytes) {
    case 0: break;
    case 1: copy_rows(part, begin, end, last, 1, false); break;
    case 2: copy_rows(part, begin, end, last, 2, false); break;
    case 4: copy_rows(part, begin, end, last, 4, false); break;
    case 8: copy_rows(part, begin, end, last, 8, false); break;
    case 16: copy_rows(part, begin, end, last, 16, false); break;
    case 32: copy_rows(part, begin, end, last, 32, false); break;
    default: copy_rows(part, begin, end, last, part->row_bytes, false);
    }
}

typedef struct {
    const eipc_gather_part *parts;
    size_t count;
    unsigned number, of; /* this share among all */
    bool past_caches;
} share;

static size_t share_begin(const eipc_gather_part *part, const share *mine) { return part->count * mine->number / mine->of; }
static size_t share_end(const eipc_gather_part *part, const share *mine) { return part->count * (mine->number + 1) / mine->of; }

/* Some rows of all parts, then some more: an observation and the one that follows it are often one piece of memory, which is then in
 * a cache when the second part wants it. */
static void *copy_shares(void *argument) {
    const share *mine = argument;
    size_t left = 0;
    for (size_t p = 0; p < mine->count; p++) {
        const eipc_gather_part *part = &mine->parts[p];
        size_t begin = share_begin(part, mine), end = share_end(part, mine), ahead = rows_ahead(part->row_bytes);
        for (size_t i = begin; i < end && i < begin + ahead; i++) ask_for(part, i);
        if (end - begin > left) left = end - begin;
    }
    for (size_t done = 0; done < left; done += TILE_ROWS) {
        for (size_t p = 0; p < mine->count; p++) {
            const eipc_gather_part *part = &mine->parts[p];
            size_t last = share_end(part, mine), begin = share_begin(part, mine) + done;
            if (begin < last) copy_some(part, begin, last - begin < TILE_ROWS ? last : begin + TILE_ROWS, last, mine->past_caches);
        }
    }
#ifdef __SSE2__
    if (mine->past_caches) _mm_sfence(); /* what went past the caches is there before anything that is written after */
#endif
    return NULL;
}

void eipc_gather(const eipc_gather_part *parts, size_t count, unsigned max_threads) {
    size_t long_bytes = 0, bytes = 0;
    for (size_t p = 0; p < count; p++) {
        bytes += parts[p].row_bytes * parts[p].count;
        if (parts[p].row_bytes >= LONG_ROW) long_bytes += parts[p].row_bytes * parts[p].count;
    }
    bool past_caches = bytes >= CACHED_BYTES;
    size_t wanted = long_bytes / BYTES_PER_THREAD;
    if (wanted > max_threads) wanted = max_threads;
    if (wanted > EIPC_MAX_THREADS) wanted = EIPC_MAX_THREADS;
    unsigned of = wanted < 1 ? 1 : (unsigned)wanted;
    share shares[EIPC_MAX_THREADS];
    pthread_t threads[EIPC_MAX_THREADS];
    bool started[EIPC_MAX_THREADS] = {false};
    for (unsigned t = 1; t < of; t++) {
        shares[t] = (share){parts, count, t, of, past_caches};
        started[t] = pthread_create(&threads[t], NULL, copy_shares, &shares[t]) == 0;
    }
    shares[0] = (share){parts, count, 0, of, past_caches};
    copy_shares(&shares[0]);
    for (unsigned t = 1; t < of; t++) {
        if (started[t]) pthread_join(threads[t], NULL);
        else copy_shares(&shares[t]); /* no thread to be had: do its share here */
    }
}

size_t eipc_copy_rows(int64_t *copy, const int64_t *rows, size_t count, int64_t lowest, int64_t end) {
    memcpy(copy, rows, count * sizeof *copy);
    for (size_t i = 0; i < count; i++)
        if (copy[i] < lowest || copy[i] >= end) return i;
    return count;
}

/* ---- sum tree ------------------------------------------------------------------------------------------------------ */

enum { HUGE_PAGE = 1 << 21 };

int eipc_tree_init(eipc_tree *tree, uint64_t capacity) {
    memset(tree, 0, sizeof *tree);
    tree->capacity = capacity;
    uint64_t nodes = 0, size = capacity;
    unsigned level = 0;
    for (;; level++) {
        bool top = level > 0 && size == 1;
        tree->size[level] = top ? EIPC_TREE_FAN : (size + EIPC_TREE_FAN - 1) / EIPC_TREE_FAN * EIPC_TREE_FAN;
        nodes += tree->size[level] * (level > 0 ? 2 : 1);
        if (top) break;
        size = tree->size[level] / EIPC_TREE_FAN;
    }
    tree->depth = level;
    size_t bytes = nodes * sizeof(double), align = bytes < HUGE_PAGE ? EIPC_ALIGN : HUGE_PAGE;
    double *next = tree->memory = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (!next) return -1;
    if (align == HUGE_PAGE) madvise(next, bytes, MADV_HUGEPAGE); /* a draw touches a page for each row and level */
    memset(next, 0, bytes);
    for (level = 0; level <= tree->depth; level++) {
        tree->sum[level] = next;
        next += tree->size[level];
        if (level == 0) continue;
        tree->least[level] = next;
        next += tree->size[level];
        for (uint64_t i = 0; i < tree->size[level]; i++) tree->least[level][i] = INFINITY;
    }
    return 0;
}

void eipc_tree_free(eipc_tree *tree) {
    free(tree->memory);
    tree->memory = NULL;
}

static inline double lower(double a, double b) { return a < b ? a : b; }

/* Compute one node of `level` from its children: in pairs, so that no addition waits for seven others. */
static inline void renew(eipc_tree *tree, unsigned level, uint64_t node) {
    const double *c = tree->sum[level - 1] + node * EIPC_TREE_FAN;
    tree->sum[level][node] = ((c[0] + c[4]) + (c[2] + c[6])) + ((c[1] + c[5]) + (c[3] + c[7]));
    double positive[EIPC_TREE_FAN];
    const double *least = level == 1 ? positive : tree->least[level - 1] + node * EIPC_TREE_FAN;
    for (int i = 0; level == 1 && i < EIPC_TREE_FAN; i++) positive[i] = c[i] > 0 ? c[i] : INFINITY;
    tree->least[level][node] = lower(lower(lower(least[0], least[4]), lower(least[2], least[6])),
                                     lower(lower(least[1], least[5]), lower(least[3], least[7])));
}

void eipc_tree_set(eipc_tree *tree, const int64_t *rows, const double *weights, size_t count) {
    for (size_t i = 0; i < count; i++) __builtin_prefetch(tree->sum[0] + rows[i], 1, 3);
    for (size_t i = 0; i < count; i++) tree->sum[0][rows[i]] = weights[i];
    for (unsigned level = 1; level <= tree->depth; level++) {
        uint64_t last = UINT64_MAX;
        for (size_t i = 0; i < count; i++) {
            uint64_t node = (uint64_t)rows[i] >> level * EIPC_TREE_FAN_BITS;
            if (node != last) renew(tree, level, node);
            last = node;
        }
    }
}

void eipc_tree_fill(eipc_tree *tree, uint64_t begin, uint64_t end, double weight) {
    if (begin >= end) return;
    for (uint64_t row = begin; row < end; row++) tree->sum[0][row] = weight;
    uint64_t first = begin, last = end - 1;
    for (unsigned level = 1; level <= tree->depth; level++) {
        first /= EIPC_TREE_FAN;
        last /= EIPC_TREE_FAN;
        for (uint64_t node = first; node <= last; node++) renew(tree, level, node);
    }
}

/* before[c]: the sum of the children before c; rises with c, whatever the rounding. */
static inline void add_up(const double *c, double *before) {
    double of_four = (c[0] + c[1]) + (c[2] + c[3]);
    before[0] = 0;
    before[1] = c[0];
    before[2] = c[0] + c[1];
    before[3] = before[2] + c[2];
    before[4] = of_four;
    before[5] = of_four + c[4];
    before[6] = of_four + (c[4] + c[5]);
    before[7] = before[6] + c[6];
}

/* One level down: the child in which `*left` lies; `*left` becomes what is left of it there. Without a branch that depends on
 * the target, which no processor could predict. */
static inline uint64_t descend(const double *children, const double *before, double *left) {
    double target = *left;
    int64_t found = 0;
    for (int c = 1; c < EIPC_TREE_FAN; c++) found += target >= before[c];
    while (children[found] <= 0 && found > 0) found--; /* past all sums by rounding: the last child that has a weight */
    *left = target - before[found];
    return (uint64_t)found;
}

void eipc_tree_find(const eipc_tree *tree, const double *targets, size_t count, int64_t *rows, double *weights) {
    /* All targets go down one level before any goes down the next: their cache misses overlap. `weights` holds what is left. */
    for (size_t i = 0; i < count; i++) {
        rows[i] = 0;
        weights[i] = targets[i];
    }
    for (unsigned level = tree->depth; level-- > 0;) {
        const double *sums = tree->sum[level];
        const double *below = level > 0 ? tree->sum[level - 1] : NULL;
        double before[EIPC_TREE_FAN];
        int64_t last = -1; /* neighbours among targets in ascending order are often in one node */
        for (size_t i = 0; i < count; i++) {
            const double *children = sums + rows[i] * EIPC_TREE_FAN;
            if (rows[i] != last) add_up(children, before);
            last = rows[i];
            rows[i] = last * EIPC_TREE_FAN + (int64_t)descend(children, before, &weights[i]);
            if (below) __builtin_prefetch(below + rows[i] * EIPC_TREE_FAN, 0, 3);
        }
    }
    for (size_t i = 0; i < count; i++) weights[i] = tree->sum[0][rows[i]];
}
