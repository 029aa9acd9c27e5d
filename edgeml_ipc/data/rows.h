/* Rows that several processes write and read: who may write which, which are whole, which were overwritten. Plain C11 for Linux.
 *
 * docs/replay.md is the specification: the byte drawing, who writes what, the memory ordering and the crash story.
 *
 *   rows.c          chunks: claim, reserve, commit; what a reader finds, and whether it still stood after the copy
 *   rows_steps.c    the episodes of the rows that are held, for who draws windows
 *   rows_append.c   transitions put into rows, their observations into frames
 *   rows_writers.c  the registry of writers: who lives, and what is done for those that died
 *   rows_cursors.c  up to which item each uploading client's stream is committed
 *   rows_wait.c     how processes wait until something changes, and the counts of the rate limiter
 *
 * A chunk is a run of rows with at most one writer at a time. Its rows have *stamps*: row i in generation g has the stamp
 * g * stride + i. `reserved` and `committed` are stamps, and only rise. A row is whole if its stamp is below the `committed` of
 * its generation, and stands as long as reserved <= stamp + stride, that is, until the next generation reserves its place.
 *
 * Functions return 0 or a negative erb_status. No lock lies in shared memory; what is read from there is checked before use.
 */
#ifndef EDGEML_IPC_ROWS_H
#define EDGEML_IPC_ROWS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ERB_MAGIC 0x31304c5052454c4dull /* "MLERPL01" */
#define ERB_VERSION 4
#define ERB_MAX_WRITERS 4096
#define ERB_MAX_CURSORS 65536
#define ERB_MAX_FRAMES 65535u /* of a chunk: a row's frame is 16 bits wide */
#define ERB_MAX_STACK 64
#define ERB_MAX_CHUNKS (1u << 24)
#define ERB_FIRST 1u     /* flags of a row: the first of its episode */
#define ERB_LAST 2u      /* the last of its episode */
#define ERB_TERMINAL 4u  /* the episode ended of itself */
#define ERB_TRUNCATED 8u /* the episode was cut, or its writer died */
#define ERB_DETACHED 16u /* the observation after this row shares no frame with the row's own */

typedef enum {
    ERB_OK = 0,
    ERB_FULL = -1,      /* every chunk is held by a live writer */
    ERB_NO_SLOT = -2,   /* every place of the registry is held by a live writer */
    ERB_FOREIGN = -3,   /* not a segment of this kind */
    ERB_VERSIONED = -4, /* a segment of another version */
    ERB_UNREADY = -5,   /* its creator has not finished, or died before it had */
    ERB_DAMAGED = -6,   /* a value that this code never writes */
    ERB_FORKED = -7,    /* the table belongs to the process before fork() */
    ERB_SYSTEM = -8,    /* errno says what */
    ERB_UNFINISHED = -9, /* the observation that follows the last row is not known */
} erb_status;

/* ---- what lies in shared memory ------------------------------------------------------------------------------------ */

typedef struct {
    uint64_t magic;
    uint32_t version;
    _Atomic uint32_t ready; /* 1 once all that follows is there */
    uint64_t segment_bytes;
    uint64_t capacity; /* rows */
    uint64_t chunk_rows;
    uint64_t writer_slots;
    uint64_t schema_bytes;
    uint8_t incarnation[16];
    uint64_t chunk_frames; /* 0: observations are columns like any other */
    uint64_t stack;        /* frames in an observation */
    uint64_t cursor_slots;
    _Alignas(128) _Atomic uint64_t hand;         /* tickets given out; ticket t tries chunk t % chunks */
    _Alignas(128) _Atomic int64_t next_sequence; /* rows' sequence numbers given out */
    _Alignas(128) _Atomic int64_t next_writer;   /* writers' numbers given out; the first is 1 */
    _Alignas(128) _Atomic int64_t sampled;       /* rows */
    _Atomic int64_t redrawn;                     /* rows */
    _Atomic int64_t cursor_clock;                /* ticks with each use of a cursor */
    _Alignas(128) _Atomic uint32_t wanted;       /* somebody waits for `event` to change */
    _Atomic uint32_t event;                      /* futex */
    _Atomic uint64_t held_until;                 /* by readers: writers hold back until then, in ns of the monotonic clock; 0: they go on */
    _Alignas(128) _Atomic int64_t granted_inserts; /* rows, of the rate limiter */
    _Atomic int64_t granted_samples;               /* rows */
    double samples_per_insert;                     /* of the creator: these three do not change once it is ready; 0: no rate */
    double slack_samples;
    int64_t min_rows; /* 0: no rate limiter */
} erb_header;

/* Written by the process that holds the lock of its place, or the lock of its recovery. */
typedef struct {
    _Alignas(64) _Atomic int64_t writer; /* number, 0 = nobody; stored last */
    _Atomic int64_t pid;
    _Atomic uint64_t start_ticks; /* of the process, since boot; 0 = not known */
    _Atomic uint64_t pid_space;   /* in which `pid` means something */
    _Atomic int64_t open;         /* no row that the writer is about to commit has a lower sequence number */
    _Atomic int64_t granted;      /* rows, by the rate limiter, since the writer began */
    _Atomic int64_t chunk;        /* + 1: in which the writer has begun a generation last; 0 = in none */
} erb_slot;

typedef struct {
    _Atomic int64_t writer;
    _Atomic int64_t previous_chunk; /* of the same writer, -1 = none */
    _Atomic uint64_t previous_generation;
    _Atomic int64_t previous_rows; /* that it had in the end */
    _Atomic int64_t rows_before;   /* committed in this chunk before this generation */
    _Atomic int64_t writer_rows;   /* committed by this writer before this generation */
} erb_generation;

/* All but `lease` is written by the holder of the lease only. */
typedef struct {
    _Alignas(128) _Atomic uint64_t lease; /* changes << 16 | holder's place + 1, 0 = nobody */
    _Atomic uint64_t reserved;            /* stamp: rows below are, or are being, overwritten */
    _Atomic uint64_t committed;           /* stamp: rows of this generation below are whole */
    _Atomic uint64_t ended;               /* stamp: where the generation before ended */
    erb_generation of[2];                 /* by generation % 2: this one and the one before */
} erb_chunk;

/* How far a client's items are committed. Written under the lock of the cursors, but for `base`, which belongs to the writer. */
typedef struct {
    _Alignas(64) _Atomic uint64_t key[2]; /* digest of the client's name and of its store's life */
    _Atomic int64_t writer;               /* that has the stream now, 0 = none */
    _Atomic int64_t base;    /* while a writer has it: the item wanted next is base + the rows that the writer has committed */
    _Atomic int64_t next_id; /* while none has it: the item wanted next */
    _Atomic int64_t used;    /* by `cursor_clock`; 0 = free */
} erb_cursor;

typedef struct {
    uint64_t capacity, chunk_rows, writer_slots, chunk_frames, stack, cursor_slots;
} erb_geometry;

/* ---- what lies in one process -------------------------------------------------------------------------------------- */

typedef struct {
    int64_t number; /* 0: this place is not ours */
    int64_t chunk;  /* where I write, -1 = nowhere yet */
    int64_t behind; /* full, held until the first commit in `chunk`, so that my last row is always mine to mark; -1 = none */
    int64_t last_row;
    uint64_t committed; /* stamp: as in the chunk, which nobody else moves */
    uint64_t open_rows; /* reserved, not yet committed */
    int64_t sequence, sequences; /* taken and not yet committed */
    int64_t total;               /* rows committed */
    int64_t position;            /* of the next row in its episode; 0: none is open */
    int64_t pending_sequence;
    bool pending;                /* the row after the last committed one is written but for the observation that follows it */
    bool continues;              /* the last frame is the observation that follows the last row */
    uint64_t frames_begin, frames_used; /* in `chunk`: the first frame, and how many from there on, modulo chunk_frames */
    uint64_t old_rows, gone;            /* in `chunk`: rows of the generation before; how many of those stand no more */
} erb_writer;

typedef enum {
    ERB_ROWS,   /* one item per row, in its row */
    ERB_FRAMES, /* one item per frame */
    ERB_STACKS, /* items of `stack` frames, of which each is stored once */
} erb_kind;

typedef struct {
    uint8_t *base;
    erb_kind kind;
    uint64_t item_bytes; /* of an item as it is given */
    uint64_t run_bytes;  /* of ERB_STACKS: how many bytes of a frame lie together in an item */
} erb_column;

typedef struct {
    erb_header *header;
    erb_slot *slots;
    erb_chunk *chunks;
    erb_cursor *cursors;
    int64_t *sequence;      /* columns */
    int32_t *position, *version, *writer;
    uint16_t *frame;        /* of a row's observation: the newest of its stack, within its chunk */
    _Atomic uint8_t *flags;
    erb_column *columns;    /* of the data */
    size_t column_count;
    uint64_t capacity, chunk_rows, chunk_count, writer_slots, chunk_frames, stack, cursor_slots;
    unsigned stride_bits; /* stride = 1 << stride_bits, more than chunk_rows */
    int fd; /* a duplicate: its locks live as long as the table */
    unsigned forks;
    uint64_t pid_space;
    pthread_mutex_t mutex; /* of this process: guards `writers`, and recovery */
    erb_writer *writers;   /* by place */
} erb_table;

/* A run of whole rows: positions up to `end` (from the end of the run before), lying from `row` on, with stamps from `stamp` on. */
typedef struct {
    int64_t end, row, stamp;
} erb_span;

typedef struct {
    int64_t inserted, held, newest, sampled, redrawn, writers;
} erb_counts;

/* ---- rows.c -------------------------------------------------------------------------------------------------------- */

uint64_t erb_chunks_for(uint64_t capacity, uint64_t chunk_rows);
uint64_t erb_schema_at(const erb_geometry *geometry); /* 0: out of range */

int erb_format(void *base, uint64_t bytes, const erb_geometry *geometry, uint64_t schema_bytes,
               const uint8_t incarnation[16]); /* of zeros; not ready until erb_publish */
void erb_publish(void *base);
int erb_inspect(const void *base, uint64_t bytes); /* whether the header is one of ours and fits its segment */

/* Where the columns of what is known of each row lie, in bytes from the segment's begin. */
typedef struct {
    uint64_t sequence, position, version, writer, frame, flags;
} erb_places;

/* Look at a segment that erb_inspect passed. The fd stays the caller's; `columns` are copied, their memory must outlive the table. */
int erb_open(void *base, int fd, const erb_places *places, const erb_column *columns, size_t column_count, erb_table **out);
void erb_close(erb_table *table); /* ends all its writers */

int erb_reserve(erb_table *table, uint32_t place, uint64_t rows, int64_t *row, uint64_t *granted, int64_t *sequence);
int erb_commit(erb_table *table, uint32_t place);
int erb_mark(erb_table *table, uint32_t place, uint8_t flags); /* on this writer's last row, if it has one */
void erb_release_chunks(erb_table *table, uint32_t place);

/* Parts of the above, for rows_append.c. */
int erb_claim(erb_table *table, uint32_t place);
uint64_t erb_rows_in(const erb_table *table, uint64_t chunk);
void erb_announce(erb_table *table, erb_writer *me, uint64_t rows, uint64_t frames);

/* index % ring, for an index that is most often below 2 * ring: a division would take as long as copying a small row. */
static inline uint64_t erb_in_ring(uint64_t index, uint64_t ring) {
    if (index < ring) return index;
    return index - ring < ring ? index - ring : index % ring;
}

size_t erb_max_spans(const erb_table *table);
int erb_snapshot(const erb_table *table, erb_span *spans, size_t *count); /* oldest first */
/* The rows at `n` shares in [0, 1) of all that are held, with their stamps; `total`: how many are held. 0: nothing was drawn. */
int erb_draw(const erb_table *table, const double *shares, size_t n, int64_t *rows, int64_t *stamps, int64_t *total);
/* The same of a snapshot that has rows; `stamps` may be NULL. */
int erb_draw_from(const erb_span *spans, size_t count, const double *shares, size_t n, int64_t *rows, int64_t *stamps);
int erb_resolve(const erb_span *spans, size_t count, const int64_t *positions, size_t n,
                int64_t *rows, int64_t *stamps);
int erb_intact(const erb_table *table, const int64_t *rows, const int64_t *stamps, size_t n, uint8_t *out, size_t *lost);
int erb_count(const erb_table *table, erb_counts *out);
int64_t erb_horizon(erb_table *table); /* rows with lower sequence numbers are committed, or never will be */
void erb_open_sequence(erb_table *table, uint32_t place); /* before sequence numbers are taken */
void erb_close_sequence(erb_table *table, uint32_t place, int64_t from); /* afterwards; `from`: those that are yet to be committed */
void erb_tally(erb_table *table, int64_t sampled, int64_t redrawn);
/* The chunk, generation and number of rows that the writer of this row's generation filled before. */
int erb_previous(const erb_table *table, int64_t row, int64_t stamp, int64_t previous[3]);

/* ---- rows_steps.c ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t row, stamp, count;            /* of the first row; how many */
    int64_t rank, chain_begin, chain_end; /* of the first row, of its chain's first, and past its chain's last */
    int32_t previous, next;               /* runs of the same chain, -1 = none */
} erb_run;

/* Of one moment; one thread's at a time. The table must outlive it. */
typedef struct {
    const erb_table *table;
    erb_run *runs; /* as in the snapshot; one piece of memory with what follows */
    erb_span *spans;
    int32_t *newer, *older; /* by chunk: its runs, -1 = none */
    int32_t *by_rank;
    size_t count;
    int64_t total; /* rows */
} erb_steps;

typedef enum { ERB_BEFORE, ERB_AFTER, ERB_RANK, ERB_STAMP } erb_question;

int erb_steps_open(const erb_table *table, const erb_span *spans, size_t count, erb_steps *steps);
void erb_steps_close(erb_steps *steps);
/* All rows must be held, or ERB_DAMAGED: how many steps of the episode are held before or after each; its rank; its stamp. */
int erb_steps_tell(const erb_steps *steps, erb_question question, const int64_t *rows, size_t n, int64_t *out);
void erb_steps_holds(const erb_steps *steps, const int64_t *rows, size_t n, uint8_t *out);
int erb_steps_shift(const erb_steps *steps, const int64_t *rows, const int64_t *offsets, size_t n, int64_t *out);
/* Take the rows at `n` shares in [0, 1) of all for the last steps of windows [anchor + first, anchor + last], and write the anchors
 * of those that lie in an episode of which at least `min_length` steps are held. */
int erb_steps_draw(const erb_steps *steps, const double *shares, size_t n, int64_t first, int64_t last, int64_t min_length, int64_t *anchors,
                   size_t *found);
/* The rows [anchor + begin, anchor + end) of each anchor's episode, `end - begin` for each; -1 where it has none. */
int erb_steps_reach(const erb_steps *steps, const int64_t *anchors, size_t n, int64_t begin, int64_t end, int64_t *rows, uint8_t *mask);
/* Clear in `out` the elements of which a row of [anchor + first, anchor + last] was overwritten, the anchor's own among them, or one of their
 * `size` rows, or of which one of these is not of the anchor's episode; -1 counts for nothing. */
int erb_steps_intact(const erb_steps *steps, const int64_t *anchors, const int64_t *rows, size_t n, size_t size, int64_t first, int64_t last,
                     uint8_t *out);

/* ---- rows_append.c --------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *const *values; /* by column: rows * item_bytes */
    const uint8_t *const *nexts;  /* by column, NULL for ERB_ROWS: the observations that follow; NULL: not given */
    const uint8_t *ended, *terminal;
    const int32_t *versions;
} erb_input;

int erb_append(erb_table *table, uint32_t place, const erb_input *input, uint64_t rows);
int erb_end(erb_table *table, uint32_t place); /* the open episode ends as truncated */

/* Where the observations of rows lie, and those after them: `stack` frames for each row, -1 for the row -1. */
int erb_frames(const erb_table *table, const int64_t *rows, size_t n, int64_t *own, int64_t *next);

/* ---- rows_cursors.c -------------------------------------------------------------------------------------------------- */

int erb_cursor_read(erb_table *table, const uint64_t key[2], int64_t *next_id); /* -1: never heard of */
int erb_cursor_bind(erb_table *table, const uint64_t key[2], uint32_t place, int64_t next_id);
void erb_cursor_settle(erb_table *table, int64_t writer, int64_t total); /* its writer writes no more */
int64_t erb_total(const erb_table *table, uint32_t place); /* rows committed by the writer of a place; its chunks are still held */

/* ---- rows_wait.c ----------------------------------------------------------------------------------------------------- */

uint32_t erb_wait_begin(erb_header *header); /* from now on changes are announced; look at what is waited for after this */
int erb_wait(erb_header *header, uint32_t seen, uint64_t nanoseconds); /* until `event` is not `seen`, or sooner */
void erb_changed(erb_header *header); /* after a change that somebody may wait for */
void erb_wake_all(erb_header *header);
#define ERB_HOLD_NS 50000000u /* a writer holds back no longer than this, whatever `held_until` says */
void erb_hold(erb_header *header, uint64_t nanoseconds); /* ask writers to hold back for so long; 0: no more */
uint64_t erb_held_ns(const erb_header *header); /* how long a writer should hold back now, at most ERB_HOLD_NS */
int erb_granted(erb_header *header, int64_t *inserts, int64_t *samples);
bool erb_grant(erb_header *header, _Atomic int64_t *count, int64_t seen, int64_t rows); /* false: it is not `seen` */
void erb_grant_back(erb_header *header, int64_t inserts, int64_t samples);
void erb_grant_settle(erb_table *table, uint32_t place, int64_t total); /* a writer committed `total` rows, and writes no more */

/* ---- rows_writers.c ------------------------------------------------------------------------------------------------- */

unsigned erb_fork_count(void);
uint64_t erb_pid_space(void); /* in which process ids mean something; 0 = not known */
int erb_register(erb_table *table, uint32_t *place, int64_t *number);
void erb_forget(erb_table *table, uint32_t place); /* its open episode ends as truncated */
int erb_recover(erb_table *table, uint32_t *recovered); /* do for the dead what they can no more */
bool erb_is_dead(erb_table *table, uint32_t place); /* whoever writes there will write no more; false: lives, or is not known to be dead */
bool erb_recover_place(erb_table *table, uint32_t place); /* the mutex is held; true: it was dead and is recovered */
bool erb_lock(const erb_table *table, int64_t byte, bool wait); /* of the kernel, on a byte that stands for something */
void erb_unlock(const erb_table *table, int64_t byte);
#define ERB_CURSORS_BYTE (2 * ERB_MAX_WRITERS)

#endif
