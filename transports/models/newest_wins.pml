/* Newest-wins publishing, as topic.c does it: one writer, READERS readers with PINS pins each, READERS * PINS + 2 slots.
 *
 * Stores to `latest` and to pins go through store buffers of one entry. The writer never waits, never writes a slot that is
 * being read, and no reader sees a slot half written or goes back to an older value. -DNOFENCE_READER, -DNOFENCE_WRITER,
 * -DNO_RECHECK, -DONE_SLOT_LESS and -DPINS_PER_SLOT (a scan of the pins for each slot instead of one snapshot) must each fail.
 */
#ifndef READERS
#define READERS 2
#endif
#define PINS 1 /* a reader with p pins is p readers here: which of them holds what makes no difference to the writer */
#ifdef ONE_SLOT_LESS
#define SLOTS (READERS * PINS + 1)
#else
#define SLOTS (READERS * PINS + 2)
#endif
#define PUBLISHES 4
#define READS 2

byte latest, slot_of[PUBLISHES + 1], pin[READERS], content[SLOTS], reading[SLOTS];
bool writing[SLOTS];
bool latest_buffered, pin_buffered[READERS];
byte latest_buffer, pin_buffer[READERS];

#ifdef NOFENCE_READER
#define READER_FENCE skip
#else
#define READER_FENCE !pin_buffered[id]
#endif
#ifdef NOFENCE_WRITER
#define WRITER_FENCE skip
#else
#define WRITER_FENCE !latest_buffered
#endif
#define STORE_PIN(value) !pin_buffered[id]; d_step { pin_buffer[id] = value; pin_buffered[id] = true }

active proctype drain_latest() { end: do :: atomic { latest_buffered -> latest = latest_buffer; latest_buffered = false } od }
proctype drain_pin(byte id) { end: do :: atomic { pin_buffered[id] -> pin[id] = pin_buffer[id]; pin_buffered[id] = false } od }

proctype writer() {
    byte version, slot, i, value, current = 0;
    bool taken[SLOTS];
    for (version : 1 .. PUBLISHES) {
        WRITER_FENCE;
#ifdef PINS_PER_SLOT
        slot = 0;
        do
        :: slot == SLOTS -> break
        :: else ->
            taken[slot] = (slot == current);
            i = 0;
            do
            :: i < READERS -> value = pin[i]; if :: value == slot + 1 -> taken[slot] = true :: else fi; i++
            :: else -> break
            od;
            if :: !taken[slot] -> break :: else -> slot++ fi
        od;
#else
        for (slot : 0 .. SLOTS - 1) { taken[slot] = (slot == current) }
        i = 0;
        do
        :: i < READERS -> value = pin[i]; if :: value > 0 -> taken[value - 1] = true :: else fi; i++
        :: else -> break
        od;
        slot = 0;
        do
        :: slot < SLOTS && taken[slot] -> slot++
        :: else -> break
        od;
#endif
        assert(slot < SLOTS);
        writing[slot] = true;
        assert(reading[slot] == 0);
        content[slot] = 0;
        content[slot] = version;
        assert(reading[slot] == 0);
        writing[slot] = false;
        slot_of[version] = slot;
        !latest_buffered;
        d_step { latest_buffer = version; latest_buffered = true }
        current = slot
    }
}

proctype reader(byte id) {
    byte seen, again, slot, reads, newest = 0;
    for (reads : 1 .. READS) {
        seen = latest;
        do
        :: true ->
            slot = slot_of[seen];
            STORE_PIN(slot + 1);
            READER_FENCE;
#ifdef NO_RECHECK
            break
#else
            again = latest;
            if :: again == seen -> break :: else -> seen = again fi
#endif
        od;
        reading[slot]++;
        assert(!writing[slot]);
        assert(content[slot] == seen);
        assert(seen >= newest);
        newest = seen;
        assert(!writing[slot]);
        reading[slot]--;
        STORE_PIN(0)
    }
}

init {
    byte r;
    atomic {
        for (r : 0 .. READERS - 1) { run drain_pin(r); run reader(r) }
        run writer()
    }
}
