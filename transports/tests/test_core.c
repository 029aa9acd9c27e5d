/* The C core against itself: two sides as threads of one process, under ThreadSanitizer, AddressSanitizer and UBSan.
 *
 * ThreadSanitizer goes by virtual addresses, so both sides must see one mapping: the linker's --wrap sends every attachment of
 * a memfd to the mapping of the side that made it. `run.sh` builds and runs; it also builds the core with one memory order
 * weakened, and fails unless that build is caught.
 *
 * Longer than 400 lines because all tests share one pair of sides, and one program is what the sanitizers run.
 *
 * usage: test_core NAME [SECONDS]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../core.h"

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);  \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

/* ---- one mapping for both sides ------------------------------------------------------------------------------------ */

int __real_eipc_map_create(size_t bytes, eipc_map **out);
int __wrap_eipc_map_create(size_t bytes, eipc_map **out);
int __real_eipc_map_attach(int fd, size_t least_bytes, uint32_t generation, eipc_map **out);
int __wrap_eipc_map_attach(int fd, size_t least_bytes, uint32_t generation, eipc_map **out);

static struct {
    ino_t inode;
    eipc_map *map;
} known[4096];
static int known_count;
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

static ino_t inode_of(int fd) {
    struct stat status;
    CHECK(fstat(fd, &status) == 0);
    return status.st_ino;
}

int __wrap_eipc_map_create(size_t bytes, eipc_map **out) {
    int status = __real_eipc_map_create(bytes, out);
    if (status) return status;
    pthread_mutex_lock(&known_lock);
    CHECK(known_count < 4096);
    known[known_count].inode = inode_of((*out)->fd);
    known[known_count++].map = eipc_map_ref(*out);
    pthread_mutex_unlock(&known_lock);
    return EIPC_OK;
}

int __wrap_eipc_map_attach(int fd, size_t least_bytes, uint32_t generation, eipc_map **out) {
    ino_t inode = inode_of(fd);
    eipc_map *found = NULL;
    pthread_mutex_lock(&known_lock);
    for (int i = 0; i < known_count; i++)
        if (known[i].inode == inode) found = eipc_map_ref(known[i].map);
    pthread_mutex_unlock(&known_lock);
    if (!found) return __real_eipc_map_attach(fd, least_bytes, generation, out);
    close(fd);
    *out = found;
    return EIPC_OK;
}

static void forget_mappings(void) {
    while (known_count > 0) eipc_map_unref(known[--known_count].map);
}

/* ---- a pair of connected sides ------------------------------------------------------------------------------------- */

typedef struct {
    eipc_waiter *waiter;
    eipc_link *link;
} side;

static void make_pair(side *a, side *b, uint64_t ring_bytes, uint64_t budget) {
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
    side *sides[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (!sides[i]->waiter) CHECK(eipc_waiter_create(&sides[i]->waiter) == 0);
        CHECK(eipc_link_create(sides[i]->waiter, fds[i], ring_bytes, 1 << 26, budget, &sides[i]->link) == 0);
    }
    for (int i = 0; i < 2; i++) {
        side *other = sides[1 - i];
        CHECK(eipc_link_attach(sides[i]->link, eipc_map_ref(other->link->mine), eipc_map_ref(other->waiter->board_map)) == 0);
        CHECK(eipc_waiter_add(sides[i]->waiter, sides[i]->link) == 0);
    }
}

static void free_side(side *s) {
    eipc_link_close(s->link);
    eipc_waiter_remove(s->waiter, s->link);
    eipc_link_unref(s->link);
    eipc_waiter_unref(s->waiter);
}

static uint32_t random_next(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 33);
}

static int64_t in_seconds(double seconds) { return eipc_now_ns() + (int64_t)(seconds * 1e9); }

/* Message n has up to 5 parts; each byte follows from n, the part and its place. Some are large enough for a slot. */
static uint32_t shape_of(uint64_t n, size_t *lengths) {
    uint64_t state = n * 2654435761u + 1;
    uint32_t count = 1 + random_next(&state) % 5;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t r = random_next(&state);
        lengths[i] = r % 8 == 0 ? 0 : r % 64 == 1 ? r % 70000 : r % 400;
    }
    return count;
}

static uint8_t byte_of(uint64_t n, uint32_t part, size_t at) { return (uint8_t)(n * 31 + part * 7 + at); }

static void fill(uint64_t n, eipc_part *parts, uint32_t count, const size_t *lengths, uint8_t *memory) {
    for (uint32_t i = 0; i < count; i++) {
        for (size_t k = 0; k < lengths[i]; k++) memory[k] = byte_of(n, i, k);
        parts[i] = (eipc_part){memory, lengths[i]};
        memory += lengths[i];
    }
}

static void check_message(uint64_t n, const eipc_message *message) {
    size_t lengths[5];
    CHECK(message->count == shape_of(n, lengths));
    uint64_t offset = 0;
    for (uint32_t i = 0; i < message->count; i++) {
        uint64_t at = offset, bytes;
        CHECK(eipc_read_length(message, i, &offset, &bytes) == EIPC_OK);
        CHECK(bytes == lengths[i]);
        for (size_t k = 0; k < bytes; k++) CHECK(message->body[at + k] == byte_of(n, i, k));
    }
}

/* ---- a stream, with the ring wrapping and slots held for a while --------------------------------------------------- */

typedef struct {
    side side;
    uint64_t messages;
} stream;

static void *produce(void *argument) {
    stream *s = argument;
    uint8_t *memory = malloc(5 * 70000);
    for (uint64_t n = 0; n < s->messages; n++) {
        size_t lengths[5];
        eipc_part parts[5];
        uint32_t count = shape_of(n, lengths);
        fill(n, parts, count, lengths, memory);
        CHECK(eipc_send(s->side.link, parts, count, in_seconds(60)) == EIPC_OK);
        memset(memory, 0xee, 1000); /* the parts are ours again */
    }
    free(memory);
    return NULL;
}

static eipc_link *wait_readable(eipc_waiter *waiter) {
    eipc_link *ready = NULL;
    while (!ready) CHECK(eipc_waiter_wait(waiter, in_seconds(60), &ready) == EIPC_OK);
    return ready;
}

static void *consume(void *argument) {
    stream *s = argument;
    eipc_message held[EIPC_PINS + 1];
    uint64_t held_number[EIPC_PINS + 1];
    int holding = 0;
    for (uint64_t n = 0; n < s->messages;) {
        eipc_message message;
        eipc_link *link = wait_readable(s->side.waiter);
        int status = eipc_begin_read(link, &message);
        if (status == EIPC_FULL) continue;
        CHECK(status == EIPC_OK);
        check_message(n, &message);
        eipc_end_read(link, &message);
        if (message.map) { /* a lease: look again later, when the writer has long gone on */
            held[holding] = message;
            held_number[holding++] = n;
        }
        uint64_t state = n;
        while (holding > 0 && (holding > EIPC_PINS - 1 || random_next(&state) % 3 == 0)) {
            holding--;
            if (!held[holding].must_copy) check_message(held_number[holding], &held[holding]);
            eipc_release_pin(link, held[holding].map, held[holding].pin);
        }
        n++;
    }
    while (holding-- > 0) eipc_release_pin(s->side.link, held[holding].map, held[holding].pin);
    return NULL;
}

static void test_stream(double seconds) {
    stream a = {.messages = (uint64_t)(seconds * 4000)}, b = a;
    pthread_t threads[2];
    make_pair(&a.side, &b.side, 8192, 1 << 22);
    pthread_create(&threads[0], NULL, produce, &a);
    pthread_create(&threads[1], NULL, consume, &b);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    printf("stream: %llu messages, %llu waits for room, %llu slots made\n", (unsigned long long)a.messages,
           (unsigned long long)a.side.link->count.waits_for_room, (unsigned long long)a.side.link->count.slots_created);
    free_side(&a.side);
    free_side(&b.side);
}

/* ---- both directions at once, each side with a thread that sends and one that reads ---------------------------------- */

static void test_duplex(double seconds) {
    stream a = {.messages = (uint64_t)(seconds * 2000)}, b = a;
    pthread_t threads[4];
    make_pair(&a.side, &b.side, 4096, 1 << 22);
    pthread_create(&threads[0], NULL, produce, &a);
    pthread_create(&threads[1], NULL, consume, &a);
    pthread_create(&threads[2], NULL, produce, &b);
    pthread_create(&threads[3], NULL, consume, &b);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    printf("duplex: %llu messages each way, %llu waits for room\n", (unsigned long long)a.messages,
           (unsigned long long)(a.side.link->count.waits_for_room + b.side.link->count.waits_for_room));
    free_side(&a.side);
    free_side(&b.side);
}

/* ---- ping-pong in which both sides keep falling asleep: a lost wake-up is a deadline that passes --------------------- */

static void *echo(void *argument) {
    stream *s = argument;
    for (uint64_t n = 0; n < s->messages; n++) {
        eipc_message message;
        uint64_t value, offset = 0, bytes;
        eipc_link *link = wait_readable(s->side.waiter);
        CHECK(eipc_begin_read(link, &message) == EIPC_OK);
        CHECK(eipc_read_length(&message, 0, &offset, &bytes) == EIPC_OK && bytes == sizeof value);
        memcpy(&value, message.body, sizeof value);
        eipc_end_read(link, &message);
        CHECK(value == n);
        s->side.waiter->spin_budget_ns = (int64_t)(n % 4) * 3000;
        eipc_part part = {(const uint8_t *)&value, sizeof value};
        CHECK(eipc_send(link, &part, 1, in_seconds(60)) == EIPC_OK);
    }
    return NULL;
}

static void test_wake(double seconds) {
    stream a = {.messages = (uint64_t)(seconds * 2000)}, b = a;
    pthread_t thread;
    make_pair(&a.side, &b.side, 4096, 1 << 22);
    pthread_create(&thread, NULL, echo, &b);
    for (uint64_t n = 0; n < a.messages; n++) {
        eipc_part part = {(const uint8_t *)&n, sizeof n};
        a.side.waiter->spin_budget_ns = (int64_t)(n % 5) * 2000;
        CHECK(eipc_send(a.side.link, &part, 1, in_seconds(60)) == EIPC_OK);
        eipc_message message;
        CHECK(eipc_begin_read(wait_readable(a.side.waiter), &message) == EIPC_OK);
        eipc_end_read(a.side.link, &message);
    }
    pthread_join(thread, NULL);
    printf("wake: %llu round trips, %llu sleeps\n", (unsigned long long)a.messages, (unsigned long long)a.side.waiter->count.sleeps);
    CHECK(a.side.waiter->count.sleeps > 0);
    free_side(&a.side);
    free_side(&b.side);
}

/* ---- newest wins ----------------------------------------------------------------------------------------------------- */

enum { SUBSCRIBERS = 3, WORDS = 3000 };

static _Atomic bool publishing = true;

static uint64_t uniform_value(const eipc_message *message) {
    uint64_t first;
    memcpy(&first, message->body, sizeof first);
    for (int i = 1; i < WORDS; i++) {
        uint64_t word;
        memcpy(&word, message->body + (size_t)i * 8, 8);
        CHECK(word == first); /* torn: two values mixed */
    }
    return first;
}

static void *subscribe(void *argument) {
    side *s = argument;
    uint64_t newest = 0, reads = 0;
    eipc_message held = {0};
    uint64_t held_value = 0;
    while (atomic_load(&publishing)) {
        eipc_link *ready = NULL;
        int status = eipc_waiter_wait(s->waiter, in_seconds(0.01), &ready);
        if (status == EIPC_TIMEOUT || !ready) continue;
        eipc_message message;
        CHECK(eipc_begin_read(s->link, &message) == EIPC_OK);
        uint64_t value = uniform_value(&message);
        CHECK(value > newest);
        newest = value;
        eipc_end_read(s->link, &message);
        if (held.map) {
            CHECK(uniform_value(&held) == held_value);
            eipc_release_pin(s->link, held.map, held.pin);
            held.map = NULL;
        }
        if (message.must_copy || ++reads % 3) {
            eipc_release_pin(s->link, message.map, message.pin);
        } else {
            held = message;
            held_value = value;
        }
    }
    if (held.map) eipc_release_pin(s->link, held.map, held.pin);
    return (void *)(uintptr_t)reads;
}

static void test_topic(double seconds) {
    side publishers[SUBSCRIBERS] = {{0}}, subscribers[SUBSCRIBERS] = {{0}};
    eipc_topic *topic;
    eipc_waiter *waiter;
    CHECK(eipc_waiter_create(&waiter) == 0);
    CHECK(eipc_topic_create(waiter, 3, 1 << 26, &topic) == 0);
    pthread_t threads[SUBSCRIBERS];
    for (int i = 0; i < SUBSCRIBERS; i++) {
        publishers[i].waiter = waiter;
        eipc_waiter_ref(waiter);
        make_pair(&publishers[i], &subscribers[i], 4096, 1 << 22);
        eipc_link_subscribe(subscribers[i].link, 1u << 3);
        CHECK(eipc_topic_add(topic, publishers[i].link) == 0 && eipc_link_open_topics(publishers[i].link) == 0);
        pthread_create(&threads[i], NULL, subscribe, &subscribers[i]);
    }
    static uint64_t words[WORDS];
    int64_t end = in_seconds(seconds);
    uint64_t version = 0, local = 0;
    eipc_message own;
    while (eipc_now_ns() < end) {
        version++;
        for (int i = 0; i < WORDS; i++) words[i] = version;
        eipc_part part = {(const uint8_t *)words, sizeof words};
        CHECK(eipc_topic_publish(topic, &part, 1) == EIPC_OK);
        if (version % 100 == 1 && local) {
            CHECK(uniform_value(&own) == local);
            atomic_store(own.pin, 0);
            eipc_map_unref(own.map);
            local = 0;
        }
        if (version % 100 == 2 && eipc_topic_hold(topic, &own) == EIPC_OK) local = uniform_value(&own);
    }
    atomic_store(&publishing, false);
    uint64_t reads = 0;
    for (int i = 0; i < SUBSCRIBERS; i++) {
        void *count;
        pthread_join(threads[i], &count);
        reads += (uintptr_t)count;
    }
    printf("topic: %llu published, %llu read, %llu slots\n", (unsigned long long)version, (unsigned long long)reads,
           (unsigned long long)topic->count.slots_created);
    CHECK(reads > 0 && topic->count.slots_created <= SUBSCRIBERS * 2 + 4);
    if (local) eipc_map_unref(own.map);
    for (int i = 0; i < SUBSCRIBERS; i++) {
        eipc_topic_remove(topic, publishers[i].link);
        free_side(&publishers[i]);
        free_side(&subscribers[i]);
    }
    eipc_topic_destroy(topic);
    eipc_waiter_unref(waiter);
}

/* ---- limits ---------------------------------------------------------------------------------------------------------- */

/* The pidfd may tell of a death before the socket was read: the slot's announcement still lies there. */
static void test_death_before_packets(void) {
    side a = {0}, b = {0};
    make_pair(&a, &b, 4096, 1 << 20);
    static uint8_t bytes[50000];
    eipc_part part = {bytes, sizeof bytes};
    CHECK(eipc_send(a.link, &part, 1, 0) == EIPC_OK);
    eipc_link_close(a.link);
    atomic_store(&b.link->gone, true);
    eipc_message message;
    CHECK(eipc_begin_read(b.link, &message) == EIPC_OK);
    CHECK(message.count == 1 && message.map);
    eipc_end_read(b.link, &message);
    eipc_release_pin(b.link, message.map, message.pin);
    CHECK(eipc_begin_read(b.link, &message) == EIPC_GONE);
    free_side(&a);
    free_side(&b);
}

static void test_limits(double seconds) {
    (void)seconds;
    side a = {0}, b = {0};
    make_pair(&a, &b, 4096, 1 << 20);
    uint8_t bytes[1000] = {0};
    eipc_part part = {bytes, sizeof bytes};
    int sent = 0;
    while (eipc_send(a.link, &part, 1, 0) == EIPC_OK) sent++;
    CHECK(sent == 3 || sent == 4); /* 4096 / 1024, or one less where a record would have to wrap */
    CHECK(eipc_send(a.link, &part, 1, 0) == EIPC_FULL);
    CHECK(eipc_send(a.link, &part, 1, in_seconds(0.02)) == EIPC_TIMEOUT);
    CHECK(eipc_send(a.link, &part, 0, 0) == EIPC_TOO_LARGE);
    eipc_part huge = {bytes, (size_t)1 << 27};
    CHECK(eipc_send(a.link, &huge, 1, 0) == EIPC_TOO_LARGE);
    eipc_message message;
    for (int i = 0; i < sent; i++) { /* what did not fit was not sent, and what was sent is all there */
        CHECK(eipc_begin_read(b.link, &message) == EIPC_OK);
        eipc_end_read(b.link, &message);
    }
    CHECK(eipc_begin_read(b.link, &message) == EIPC_FULL);
    CHECK(eipc_send(a.link, &part, 1, 0) == EIPC_OK);
    eipc_link_close(a.link); /* committed before the end, delivered before the end */
    CHECK(eipc_waiter_scan(b.waiter) == b.link);
    eipc_link_drain(b.link);
    CHECK(eipc_begin_read(b.link, &message) == EIPC_OK);
    eipc_end_read(b.link, &message);
    CHECK(eipc_begin_read(b.link, &message) == EIPC_GONE);
    CHECK(eipc_send(a.link, &part, 1, 0) == EIPC_CLOSED);
    CHECK(eipc_send(b.link, &part, 1, 0) == EIPC_GONE);
    free_side(&a);
    free_side(&b);
    test_death_before_packets();
    eipc_map *map;
    CHECK(eipc_map_create(((size_t)1) << 50, &map) == EIPC_NO_MEMORY);
    printf("limits: ok\n");
}

/* ---- a hostile peer: any bytes in its pages and packets must end in a violation, never in a stray access --------------- */

static void scribble(side *enemy, uint64_t *state, uint32_t kinds) {
    uint8_t *page = enemy->link->mine->addr;
    uint64_t values[] = {0, 1, 63, 64, 4096, 4097, UINT32_MAX, UINT64_MAX, random_next(state), random_next(state) % 8192};
    uint64_t value = values[random_next(state) % 10];
    switch (random_next(state) % kinds) { /* 4 kinds leave the socket alone, which else ends most rounds at once */
    case 0: atomic_store((_Atomic uint64_t *)(void *)(page + offsetof(eipc_endpoint, tx_tail)), value); break;
    case 1: atomic_store((_Atomic uint64_t *)(void *)(page + offsetof(eipc_endpoint, rx_head)), value); break;
    case 2: memcpy(enemy->link->tx_ring + random_next(state) % 4000, &value, 8); break;
    case 3: atomic_store(&enemy->waiter->board->latest[random_next(state) % 2], value << 8 | random_next(state) % 80); break;
    default: {
        uint8_t packet[32] = {'S', 0, (uint8_t)random_next(state), (uint8_t)random_next(state), (uint8_t)value};
        send(enemy->link->sock, packet, 1 + random_next(state) % 31, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    }
}

static void test_hostile(double seconds) {
    int64_t end = in_seconds(seconds);
    uint64_t rounds = 0, violations = 0, state = 12345;
    while (eipc_now_ns() < end) {
        side enemy = {0}, us = {0};
        make_pair(&enemy, &us, 4096, 1 << 20);
        atomic_store(&us.link->topics, 3);
        int status = EIPC_OK;
        for (int i = 0; i < 40 && status != EIPC_VIOLATION; i++) {
            uint8_t bytes[900] = {0};
            eipc_part part = {bytes, random_next(&state) % 900};
            if (random_next(&state) % 2) eipc_send(enemy.link, &part, 1, 0);
            scribble(&enemy, &state, rounds % 4 ? 4 : 5);
            eipc_link_drain(us.link);
            eipc_message message;
            status = eipc_begin_read(us.link, &message);
            if (status == EIPC_OK) {
                uint64_t offset = 0, length, sum = 0;
                for (uint32_t k = 0; k < message.count; k++) {
                    uint64_t at = offset;
                    if (eipc_read_length(&message, k, &offset, &length)) break;
                    for (uint64_t j = 0; j < length; j++) sum += message.body[at + j];
                }
                bytes[0] = (uint8_t)sum;
                eipc_end_read(us.link, &message);
                if (message.map) eipc_release_pin(us.link, message.map, message.pin);
            }
            eipc_send(us.link, &part, 1, 0);
        }
        violations += status == EIPC_VIOLATION;
        rounds++;
        free_side(&enemy);
        free_side(&us);
        forget_mappings();
    }
    printf("hostile: %llu rounds, %llu ended in a violation\n", (unsigned long long)rounds, (unsigned long long)violations);
    CHECK(violations > 0);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(double);
    } tests[] = {{"stream", test_stream}, {"duplex", test_duplex}, {"wake", test_wake}, {"topic", test_topic}, {"limits", test_limits}, {"hostile", test_hostile}};
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    int run = 0;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (argc > 1 && strcmp(argv[1], "all") != 0 && strcmp(argv[1], tests[i].name) != 0) continue;
        tests[i].run(seconds);
        run++;
    }
    forget_mappings();
    if (!run) fprintf(stderr, "no test named %s\n", argv[1]);
    return run ? 0 : 2;
}
