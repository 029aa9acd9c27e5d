/* The two inner loops of sampling: copying scattered rows into one batch, and drawing rows by weight.
 *
 * Plain C11 without Python.h. Nothing here allocates on the way, takes a lock, or checks what it is given: the caller
 * validates rows, sizes and weights first, on copies that no other thread can change meanwhile.
 *
 * Gather. A row may be overwritten while it is copied, by another process: the copy is then torn, never out of bounds, and
 * it is the caller who finds out (by the counters of the storage) and draws again. */
#ifndef EIPC_KERNELS_H
#define EIPC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    EIPC_ALIGN = 64,        /* of blocks, and of each column's place in a block: a cache line, and what JAX asks for */
    EIPC_MAX_THREADS = 16,  /* of one gather, the calling thread included */
    EIPC_TREE_FAN = 8,      /* children of a node: eight doubles are one cache line */
    EIPC_TREE_FAN_BITS = 3,
    EIPC_TREE_MAX_DEPTH = 16
};

/* One column's part of a gather. */
typedef struct {
    const uint8_t *source; /* row r begins at source + r * stride */
    size_t stride;         /* bytes from a row to the next */
    size_t row_bytes;
    const int64_t *rows; /* which rows, -1 for a row of zeros */
    size_t count;        /* of rows */
    const int64_t *at;   /* where in `out` each goes, in rows; NULL: one after the other */
    uint8_t *out;
} eipc_gather_part;

/* Copy all parts. More than one thread is started only where the bytes to copy are worth it. */
void eipc_gather(const eipc_gather_part *parts, size_t count, unsigned max_threads);

/* Copy `count` row numbers, and return how many lead up to the first that is not in [lowest, end): `count` if all are. */
size_t eipc_copy_rows(int64_t *copy, const int64_t *rows, size_t count, int64_t lowest, int64_t end);

/* Weights of rows, and over each eight of them a node that holds their sum and their least positive weight, and so on up:
 *
 *   level 0      w0 w1 w2 w3 w4 w5 w6 w7 | w8 ...          one weight for each row, 0 where a row is not to be drawn
 *   level 1      s0                      | s1 ...          s0 = w0 + ... + w7, always in the same order
 *   top          total                                     one node
 *
 * A node is always computed anew from its eight children, never corrected by a difference, so rounding errors do not add
 * up over time: after any number of changes the tree is bit for bit what building it from its weights would give. */
typedef struct {
    uint64_t capacity; /* rows */
    unsigned depth;    /* levels above level 0 */
    double *sum[EIPC_TREE_MAX_DEPTH + 1];
    double *least[EIPC_TREE_MAX_DEPTH + 1]; /* infinity where nothing below is positive; level 0 is not stored: NULL */
    uint64_t size[EIPC_TREE_MAX_DEPTH + 1]; /* nodes of a level, a multiple of the fan but for the top */
    void *memory;
} eipc_tree;

/* Return 0, or -1 where memory is short. All weights are 0. */
int eipc_tree_init(eipc_tree *tree, uint64_t capacity);
void eipc_tree_free(eipc_tree *tree);

/* Set the weights of rows; of a row that is named twice the last one counts. */
void eipc_tree_set(eipc_tree *tree, const int64_t *rows, const double *weights, size_t count);

/* Set the weights of the rows from `begin` up to `end` to one value. */
void eipc_tree_fill(eipc_tree *tree, uint64_t begin, uint64_t end, double weight);

/* For each target in [0, total) find the row at which the running sum of weights passes it. A row of weight 0 is never
 * found if the total is positive, whatever the target and the rounding. */
void eipc_tree_find(const eipc_tree *tree, const double *targets, size_t count, int64_t *rows, double *weights);

static inline double eipc_tree_total(const eipc_tree *tree) { return tree->sum[tree->depth][0]; }
static inline double eipc_tree_least(const eipc_tree *tree) { return tree->least[tree->depth][0]; }

#endif
