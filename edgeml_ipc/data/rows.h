/* Rows that several processes write and read: who may write which, which are whole, which were overwritten. Plain C11 for Linux.
 *
 * docs/replay.md is the specification: the byte drawing, who writes what, the memory ordering and the crash story.
 *
 *   rows.c          chunks: claim, reserve, commit; what a reader finds, and whether it still stood after the copy
 *   rows_writers.c  the registry of writers: who lives, and what is done for those that died
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
#define ERB_VERSION 1
#define ERB_MAX_WRITERS 4096
#define ERB_MAX_CHUNKS (1u << 24)
#define ERB_FIRST 1u     /* flags of a row: the first of its episode */
#define ERB_LAST 2u      /* the last of its episode */
#define ERB_TERMINAL 4u  /* the episode ended of itself */
#define ERB_TRUNCATED 8u /* the episode was cut, or its writer died */

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
    _Alignas(128) _Atomic uint64_t hand;         /* tickets given out; ticket t tries chunk t % chunks */
    _Alignas(128) _Atomic int64_t next_sequence; /* rows' sequence numbers given out */
    _Alignas(128) _Atomic int64_t next_writer;   /* writers' numbers given out; the first is 1 */
    _Alignas(128) _Atomic int64_t sampled;       /* rows */
    _Atomic int64_t redrawn;                     /* rows */
} erb_header;

/* Written by the process that holds the lock of its place, or the lock of its recovery. */
typedef struct {
    _Alignas(64) _Atomic int64_t writer; /* number, 0 = nobody; stored last */
    _Atomic int64_t pid;
    _Atomic uint64_t start_ticks; /* of the process, since boot; 0 = not known */
    _Atomic uint64_t pid_space;   /* in which `pid` means something */
} erb_slot;

typedef struct {
    _Atomic int64_t writer;
    _Atomic int64_t previous_chunk; /* of the same writer, -1 = none */
    _Atomic uint64_t previous_generation;
    _Atomic int64_t rows_before; /* committed in this chunk before this generation */
} erb_generation;

/* All but `lease` is written by the holder of the lease only. */
typedef struct {
    _Alignas(128) _Atomic uint64_t lease; /* changes << 16 | holder's place + 1, 0 = nobody */
    _Atomic uint64_t reserved;            /* stamp: rows below are, or are being, overwritten */
    _Atomic uint64_t committed;           /* stamp: rows of this generation below are whole */
    _Atomic uint64_t ended;               /* stamp: where the generation before ended */
    erb_generation of[2];                 /* by generation % 2: this one and the one before */
} erb_chunk;

/* ---- what lies in one process -------------------------------------------------------------------------------------- */

typedef struct {
    int64_t number; /* 0: this place is not ours */
    int64_t chunk;  /* where I write, -1 = nowhere yet */
    int64_t behind; /* full, held until the first commit in `chunk`, so that my last row is always mine to mark; -1 = none */
    int64_t last_row;
    uint64_t committed; /* stamp: as in the chunk, which nobody else moves */
    uint64_t open_rows; /* reserved, not yet committed */
    int64_t sequence, sequences; /* taken and not yet committed */
} erb_writer;

typedef struct {
    erb_header *header;
    erb_slot *slots;
    erb_chunk *chunks;
    const int64_t *sequence;  /* column */
    _Atomic uint8_t *flags;   /* column */
    uint64_t capacity, chunk_rows, chunk_count, writer_slots;
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
uint64_t erb_schema_at(uint64_t capacity, uint64_t chunk_rows, uint64_t writer_slots); /* 0: out of range */

int erb_format(void *base, uint64_t bytes, uint64_t capacity, uint64_t chunk_rows, uint64_t writer_slots,
               uint64_t schema_bytes, const uint8_t incarnation[16]); /* of zeros; not ready until erb_publish */
void erb_publish(void *base);
int erb_inspect(const void *base, uint64_t bytes); /* whether the header is one of ours and fits its segment */

/* Look at a segment that erb_inspect passed. The fd stays the caller's. */
int erb_open(void *base, int fd, uint64_t sequence_at, uint64_t flags_at, erb_table **out);
void erb_close(erb_table *table); /* ends all its writers */

int erb_reserve(erb_table *table, uint32_t place, uint64_t rows, int64_t *row, uint64_t *granted, int64_t *sequence);
int erb_commit(erb_table *table, uint32_t place);
int erb_mark(erb_table *table, uint32_t place, uint8_t flags); /* on this writer's last row, if it has one */
void erb_release_chunks(erb_table *table, uint32_t place);

size_t erb_max_spans(const erb_table *table);
int erb_snapshot(const erb_table *table, erb_span *spans, size_t *count); /* oldest first */
int erb_resolve(const erb_span *spans, size_t count, const int64_t *positions, size_t n,
                int64_t *rows, int64_t *stamps);
int erb_intact(const erb_table *table, const int64_t *rows, const int64_t *stamps, size_t n, uint8_t *out, size_t *lost);
int erb_count(const erb_table *table, erb_counts *out);
void erb_tally(erb_table *table, int64_t sampled, int64_t redrawn);
int erb_previous(const erb_table *table, int64_t row, int64_t stamp, int64_t *chunk, int64_t *generation);

/* ---- rows_writers.c ------------------------------------------------------------------------------------------------- */

unsigned erb_fork_count(void);
uint64_t erb_pid_space(void); /* in which process ids mean something; 0 = not known */
int erb_register(erb_table *table, uint32_t *place, int64_t *number);
void erb_forget(erb_table *table, uint32_t place); /* its open episode ends as truncated */
int erb_recover(erb_table *table, uint32_t *recovered); /* do for the dead what they can no more */
bool erb_recover_place(erb_table *table, uint32_t place); /* the mutex is held; true: it was dead and is recovered */

#endif
