/* What is wanted of a table's rows, taken while they pass: each row is read from the file once and
 * touched in the processor's caches alone. Every operation on floats is numpy's own in numpy's own
 * order, see compiled.py, whose structures are those here. */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

double llem_sum(const double *a, int64_t n);

/* Rows that are gathered at a time. */
#define BLOCK 128

#define GATHER(type, name, from, count) \
    do { \
        const char *at_ = (from); \
        for (int64_t i_ = 0; i_ < (count); i_++, at_ += row_bytes) \
            memcpy(&(name)[i_], at_, sizeof(type)); \
    } while (0)

/* Columns as they are: `columns` of them, each with its offset and size in a row. */
typedef struct {
    int64_t rows, done, row_bytes, columns;
    const int64_t *offset, *size;
    char *const *out;
} Parted;

static void part(Parted *s, const char *rows, int64_t count)
{
    int64_t row_bytes = s->row_bytes;
    for (int64_t first = 0; first < count; first += BLOCK) {
        int64_t here = count - first < BLOCK ? count - first : BLOCK;
        for (int64_t c = 0; c < s->columns; c++) {
            const char *from = rows + first * row_bytes + s->offset[c];
            char *to = s->out[c] + (s->done + first) * s->size[c];
            switch (s->size[c]) {
            case 8:
                GATHER(int64_t, (int64_t *)to, from, here);
                break;
            case 4:
                GATHER(int32_t, (int32_t *)to, from, here);
                break;
            case 2:
                GATHER(int16_t, (int16_t *)to, from, here);
                break;
            default:
                for (int64_t i = 0; i < here; i++)
                    memcpy(to + s->size[c] * i, from + row_bytes * i, (size_t)s->size[c]);
            }
        }
    }
    s->done += count;
}

/* A rank's steps. `known`, where there is one, are the numbers that another rank's had; else they
 * are put into `step`. `tokens` and `unique` are filled from the first row on that has another
 * value than the first (`plain` counts the rows before it). */
typedef struct {
    int64_t rows, done, row_bytes;
    int64_t at_step, at_t0, at_t1, at_tokens, at_unique, at_e0, at_e1, at_phase;
    const int64_t *known;
    int64_t *step, *t1_ns, *tokens, *unique, *change;
    double *e1_mj;
    uint8_t *phase; /* after each change */
    int64_t unlike, disordered, changes, first_ns, last_ns, began_ns, total;
    int64_t plain, plain_tokens, plain_unique, finite;
    double began_mj;
} Steps;

static void pass_steps(Steps *s, const char *rows, int64_t count)
{
    int64_t row_bytes = s->row_bytes, number[BLOCK + 1], t0[BLOCK], tokens[BLOCK], unique[BLOCK];
    uint8_t phase[BLOCK + 1];
    for (int64_t first = 0; first < count; first += BLOCK) {
        int64_t here = count - first < BLOCK ? count - first : BLOCK, base = s->done;
        const char *from = rows + first * row_bytes;
        int64_t *t1 = s->t1_ns + base;
        double *e1 = s->e1_mj + base;
        GATHER(int64_t, number + 1, from + s->at_step, here);
        GATHER(int64_t, t0, from + s->at_t0, here);
        GATHER(int64_t, t1, from + s->at_t1, here);
        GATHER(int64_t, tokens, from + s->at_tokens, here);
        GATHER(int64_t, unique, from + s->at_unique, here);
        GATHER(double, e1, from + s->at_e1, here);
        GATHER(uint8_t, phase + 1, from + s->at_phase, here);
        if (!base) {
            memcpy(&s->began_mj, from + s->at_e0, 8);
            s->began_ns = s->first_ns = t0[0];
            s->last_ns = t1[0];
            s->plain_tokens = tokens[0], s->plain_unique = unique[0];
        }
        int64_t unlike = 0, late = 0, earliest = s->first_ns, latest = s->last_ns, finite = 0;
        if (s->known) {
            const int64_t *known = s->known + base;
            for (int64_t i = 0; i < here; i++)
                unlike |= number[i + 1] ^ known[i];
        } else {
            memcpy(s->step + base, number + 1, (size_t)here * 8);
            number[0] = base ? s->step[base - 1] : number[1] - 1;
            for (int64_t i = 0; i < here; i++)
                late |= number[i + 1] <= number[i];
        }
        for (int64_t i = base ? 0 : 1; i < here; i++)
            late |= t1[i] < t1[i - 1];
        for (int64_t i = 0; i < here; i++) {
            earliest = t0[i] < earliest ? t0[i] : earliest;
            latest = t1[i] > latest ? t1[i] : latest;
        }
        uint64_t total = 0;
        for (int64_t i = 0; i < here; i++)
            total += (uint64_t)tokens[i];
        for (int64_t i = 0; i < here; i++)
            finite += e1[i] - e1[i] == 0;
        s->unlike |= unlike != 0, s->disordered |= late;
        s->first_ns = earliest, s->last_ns = latest, s->finite += finite;
        s->total = (int64_t)((uint64_t)s->total + total);
        if (s->plain == base) {
            int64_t others = 0;
            for (int64_t i = 0; i < here; i++)
                others |= (tokens[i] ^ s->plain_tokens) | (unique[i] ^ s->plain_unique);
            if (!others)
                s->plain += here;
        }
        if (s->plain < base + here) {
            memcpy(s->tokens + base, tokens, (size_t)here * 8);
            memcpy(s->unique + base, unique, (size_t)here * 8);
        }
        phase[0] = base ? s->phase[s->changes - 1] : (uint8_t)(phase[1] + 1);
        uint8_t changed = 0;
        for (int64_t i = 0; i < here; i++)
            changed |= phase[i + 1] ^ phase[i];
        for (int64_t i = 0; changed && i < here; i++)
            if (phase[i + 1] != phase[i]) {
                s->change[s->changes] = base + i;
                s->phase[s->changes++] = phase[i + 1];
            }
        s->done += here;
    }
}

/* A device's samples, whose energy is a counter's. A sample that cannot be taken as it is (no
 * energy or power, a time or a counter that goes back, one that failed) is `odd`, and ends the
 * pass. `trapezoid` has `rows` places. */
typedef struct {
    int64_t rows, done, row_bytes;
    int64_t at_t, at_read, at_energy, at_power, at_celsius, at_use, at_throttle, at_flags;
    int64_t failed, slowed, capped, every_read, head_ns;
    double most_s;
    double *at_s, *joules, *trapezoid, *slowed_s, *capped_s, *head_mw;
    int64_t *read_ns, *change_ns, *head_t_ns;
    float *celsius, *head_use;
    int64_t odd, changes, head, start_ns, end_ns, told, warm_ns, stands;
    double start_mj, end_mj, end_w, sum_j, most_w, stood_s, integral_j;
    float warm;
} Samples;

static void warm(Samples *s, int64_t count, const float *celsius, const int64_t *t)
{
    /* the ends of a time without a change say all of it; `warm_ns` is the last that was known */
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(celsius[i]))
            continue;
        if (!s->changes || celsius[i] != s->warm) {
            if (s->changes && s->change_ns[s->changes - 1] != s->warm_ns) {
                s->change_ns[s->changes] = s->warm_ns;
                s->celsius[s->changes++] = s->warm;
            }
            s->change_ns[s->changes] = t[i];
            s->celsius[s->changes++] = celsius[i];
        }
        s->warm = celsius[i];
        s->warm_ns = t[i];
    }
}

/* Seconds up to each sample in which a reason was given: a sample's word counts for the time since
 * the one before. */
static void slow(
    double *running, int64_t mask, double most_s, int64_t base, int64_t count,
    const uint64_t *throttle, const int64_t *t)
{
    if (!base)
        running[0] = 0.0;
    for (int64_t i = base ? 0 : 1; i < count; i++) {
        double apart = (double)(t[i] - t[i - 1]) / 1e9;
        apart = apart < most_s ? apart : most_s;
        apart *= (throttle[i] & (uint64_t)mask) != 0;
        running[base + i] = running[base + i - 1] + apart;
    }
}

static void pass_samples(Samples *s, const char *rows, int64_t count)
{
    int64_t row_bytes = s->row_bytes, times[BLOCK + 1], *t = times + 1;
    double energies[BLOCK + 1], *e = energies + 1, powers[BLOCK + 1], *w = powers + 1, step[BLOCK];
    uint64_t throttle[BLOCK];
    uint16_t flags[BLOCK];
    float celsius[BLOCK], use[BLOCK];
    for (int64_t first = 0; first < count && !s->odd; first += BLOCK) {
        int64_t here = count - first < BLOCK ? count - first : BLOCK, base = s->done;
        const char *from = rows + first * row_bytes;
        double *at = s->at_s + base, *joules = s->joules + base;
        int64_t begin = base ? 0 : 1; /* the first that has one before it */
        GATHER(int64_t, t, from + s->at_t, here);
        GATHER(double, e, from + s->at_energy, here);
        GATHER(double, w, from + s->at_power, here);
        GATHER(float, celsius, from + s->at_celsius, here);
        GATHER(uint64_t, throttle, from + s->at_throttle, here);
        GATHER(uint16_t, flags, from + s->at_flags, here);
        if (!base) {
            s->start_ns = s->end_ns = t[0];
            s->start_mj = s->end_mj = e[0];
            at[0] = joules[0] = 0.0;
        }
        t[-1] = s->end_ns, e[-1] = s->end_mj, w[-1] = s->end_w;
        int64_t odd = 0;
        uint64_t told = 0;
        for (int64_t i = 0; i < here; i++)
            odd |= t[i] < t[i - 1];
        for (int64_t i = 0; i < here; i++)
            odd |= (e[i] - e[i] != 0) | (w[i] - w[i] != 0); /* not finite */
        for (int64_t i = 0; i < here; i++)
            odd |= (flags[i] & s->failed) != 0;
        for (int64_t i = 0; i < here; i++)
            told |= throttle[i];
        if (t[0] < s->head_ns) {
            GATHER(float, use, from + s->at_use, here);
            for (int64_t i = 0; i < here && t[i] < s->head_ns; i++, s->head++) {
                s->head_t_ns[s->head] = t[i];
                s->head_use[s->head] = use[i];
                s->head_mw[s->head] = w[i];
            }
        }
        for (int64_t i = 0; i < here; i++)
            w[i] = w[i] / 1e3;
        for (int64_t i = 0; i < here; i++)
            at[i] = (double)(t[i] - s->start_ns) / 1e9;
        for (int64_t i = begin; i < here; i++) {
            double mean = (w[i] + w[i - 1]) / 2;
            s->trapezoid[base + i - 1] = mean * (at[i] - at[i - 1]);
        }
        int64_t still = 0;
        for (int64_t i = begin; i < here; i++) {
            step[i] = (e[i] - e[i - 1]) / 1e3;
            still += step[i] == 0;
            odd |= step[i] < 0;
        }
        double sum = s->sum_j, most = s->most_w, wide[8];
        int64_t from_sum = begin;
        if (!base && here > 1) /* as numpy's cumsum begins */
            joules[1] = sum = step[1], from_sum = 2;
        for (int64_t i = from_sum; i < here; i++)
            joules[i] = sum += step[i];
        for (int k = 0; k < 8; k++)
            wide[k] = most;
        for (int64_t i = 0; i + 8 <= here; i += 8)
            for (int k = 0; k < 8; k++)
                wide[k] = w[i + k] > wide[k] ? w[i + k] : wide[k];
        for (int64_t i = here - here % 8; i < here; i++)
            most = w[i] > most ? w[i] : most;
        for (int k = 0; k < 8; k++)
            most = wide[k] > most ? wide[k] : most;
        if (!still && begin < here)
            s->stands = -1;
        for (int64_t i = begin; still && i < here; i++) {
            if (step[i] != 0) {
                s->stands = -1;
                continue;
            }
            if (s->stands < 0)
                s->stands = base + i - 1;
            double stood = at[i] - s->at_s[s->stands];
            s->stood_s = stood > s->stood_s ? stood : s->stood_s;
        }
        for (int64_t i = (s->every_read - base % s->every_read) % s->every_read; i < here;
             i += s->every_read)
            memcpy(&s->read_ns[(base + i) / s->every_read], from + i * row_bytes + s->at_read, 8);
        float known = s->warm;
        int32_t changed = 0;
        for (int64_t i = 0; i < here; i++)
            changed |= celsius[i] != known;
        if (changed || !s->changes)
            warm(s, here, celsius, t);
        else
            s->warm_ns = t[here - 1];
        const struct { int64_t mask; double *running; } reason[2] = {
            {s->slowed, s->slowed_s}, {s->capped, s->capped_s}};
        for (int k = 0; k < 2; k++) {
            if (told & (uint64_t)reason[k].mask && !(s->told & reason[k].mask))
                memset(reason[k].running, 0, (size_t)base * sizeof(double));
            if ((told | (uint64_t)s->told) & (uint64_t)reason[k].mask)
                slow(reason[k].running, reason[k].mask, s->most_s, base, here, throttle, t);
        }
        s->odd = odd, s->told |= (int64_t)told;
        s->end_ns = t[here - 1], s->end_mj = e[here - 1], s->end_w = w[here - 1];
        s->sum_j = sum, s->most_w = most;
        s->done += here;
    }
    if (s->done == s->rows && !s->odd) {
        if (s->changes && s->change_ns[s->changes - 1] != s->warm_ns) {
            s->change_ns[s->changes] = s->warm_ns;
            s->celsius[s->changes++] = s->warm;
        }
        s->integral_j = llem_sum(s->trapezoid, s->rows - 1);
    }
}

/* What to do with rows: 0 part them into columns, 1 pass over steps, 2 over samples. Whether to go
 * on. */
int64_t llem_feed(int64_t kind, void *state, const char *rows, int64_t count)
{
    switch (kind) {
    case 0:
        part(state, rows, count);
        return 1;
    case 1:
        pass_steps(state, rows, count);
        return !((Steps *)state)->unlike && !((Steps *)state)->disordered;
    default:
        pass_samples(state, rows, count);
        return !((Samples *)state)->odd;
    }
}

/* Read `rows` rows from chunks of `chunk_rows` rows at these places of a file, and feed them.
 * `slab` holds `slab_chunks` chunks. 0; -1: the file ends before; -2: not wanted any more; else
 * errno. */
int64_t llem_read(
    int64_t descriptor, const int64_t *places, int64_t chunk_rows, int64_t rows, int64_t row_bytes,
    char *slab, int64_t slab_chunks, int64_t kind, void *state)
{
    int64_t chunk_bytes = chunk_rows * row_bytes, chunks = (rows + chunk_rows - 1) / chunk_rows;
    for (int64_t first = 0, last; first < chunks; first = last) {
        /* neighbours together */
        last = first + 1;
        while (last < chunks && last - first < slab_chunks
               && places[last] == places[last - 1] + chunk_bytes)
            last++;
        int64_t start = first * chunk_rows, end = last * chunk_rows;
        if (end > rows)
            end = rows;
        size_t wanted = (size_t)((end - start) * row_bytes), got = 0;
        while (got < wanted) {
            ssize_t count =
                pread((int)descriptor, slab + got, wanted - got, (off_t)(places[first] + (int64_t)got));
            if (count == 0)
                return -1;
            if (count < 0 && errno != EINTR)
                return errno;
            if (count > 0)
                got += (size_t)count;
        }
        if (!llem_feed(kind, state, slab, end - start))
            return -2;
    }
    return 0;
}
