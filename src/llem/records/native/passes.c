/* One pass over the columns of a record where numpy takes many. Every operation on floats is
 * numpy's own in numpy's own order, so that the bits are the same: see compiled.py, whose test
 * compares them, and the numpy code beside each call. No contraction to fused operations. */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* Rows that are parted at a time: they stay in the processor's first cache. */
#define PARTED 128
#define BLOCK 256

static void part(
    const char *rows, int64_t count, int64_t row_bytes, int64_t start, int64_t columns,
    const int64_t *offset, const int64_t *size, char *const *out)
{
    for (int64_t first = 0; first < count; first += PARTED) {
        int64_t here = count - first < PARTED ? count - first : PARTED;
        for (int64_t c = 0; c < columns; c++) {
            const char *from = rows + first * row_bytes + offset[c];
            char *to = out[c] + (start + first) * size[c];
            switch (size[c]) {
            case 8:
                for (int64_t i = 0; i < here; i++)
                    memcpy(to + 8 * i, from + row_bytes * i, 8);
                break;
            case 4:
                for (int64_t i = 0; i < here; i++)
                    memcpy(to + 4 * i, from + row_bytes * i, 4);
                break;
            case 2:
                for (int64_t i = 0; i < here; i++)
                    memcpy(to + 2 * i, from + row_bytes * i, 2);
                break;
            default:
                for (int64_t i = 0; i < here; i++)
                    memcpy(to + size[c] * i, from + row_bytes * i, (size_t)size[c]);
            }
        }
    }
}

/* Read `rows` rows from chunks of `chunk_rows` rows at these places of a file, and part them into
 * columns. `slab` holds `slab_chunks` chunks. 0; -1: the file ends before; else errno. */
int64_t llem_read_columns(
    int64_t descriptor, const int64_t *places, int64_t chunk_rows, int64_t rows, int64_t row_bytes,
    char *slab, int64_t slab_chunks, int64_t columns, const int64_t *offset, const int64_t *size,
    char *const *out)
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
        part(slab, end - start, row_bytes, start, columns, offset, size, out);
    }
    return 0;
}

/* numpy's sum of a contiguous array. */
static double pairwise(const double *a, int64_t n)
{
    if (n < 8) {
        double sum = -0.0;
        for (int64_t i = 0; i < n; i++)
            sum += a[i];
        return sum;
    }
    if (n <= 128) {
        double r[8];
        int64_t i;
        for (int k = 0; k < 8; k++)
            r[k] = a[k];
        for (i = 8; i < n - n % 8; i += 8)
            for (int k = 0; k < 8; k++)
                r[k] += a[i + k];
        double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        for (; i < n; i++)
            sum += a[i];
        return sum;
    }
    int64_t half = n / 2;
    half -= half % 8;
    return pairwise(a, half) + pairwise(a + half, n - half);
}

/* A device's samples: seconds since the first, and the running energy in joules by its counter.
 * `scratch` has n places. told: [0] energies that are not finite, [1] powers, [2] times that go
 * back, [3] counters that do, [4] samples with one of the bits of `failed`.
 * found: [0] the longest that the counter stood, s, [1] the most power, W, [2] the trapezoids' sum,
 * J (of no use where a power is not finite). */
void llem_series(
    int64_t n, const int64_t *t_ns, const double *energy_mj, const double *power_mw,
    const uint16_t *flags, int64_t failed, double *at_s, double *joules, double *scratch,
    int64_t *told, double *found)
{
    int64_t bad = 0, dark = 0, late = 0, back = 0, fails = 0;
    double most = 0.0, longest = 0.0, power_w[BLOCK + 1];
    at_s[0] = 0.0;
    /* in blocks that stay in the first cache, each loop of a kind that compilers make wide */
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t end = first + BLOCK < n ? first + BLOCK : n;
        int64_t next = end < n ? end + 1 : n; /* a trapezoid reaches into the next block */
        for (int64_t i = first; i < next; i++)
            at_s[i] = (double)(t_ns[i] - t_ns[0]) / 1e9;
        for (int64_t i = first; i < end; i++) {
            bad += !isfinite(energy_mj[i]);
            dark += !isfinite(power_mw[i]);
        }
        for (int64_t i = first; i < end; i++)
            fails += (flags[i] & failed) != 0;
        for (int64_t i = first; i + 1 < next; i++)
            late += t_ns[i + 1] < t_ns[i];
        for (int64_t i = first; i < next; i++)
            power_w[i - first] = power_mw[i] / 1e3;
        for (int64_t i = first; i < end; i++)
            most = power_w[i - first] > most ? power_w[i - first] : most;
        for (int64_t i = first; i + 1 < next; i++) {
            double mean = (power_w[i + 1 - first] + power_w[i - first]) / 2;
            scratch[i] = mean * (at_s[i + 1] - at_s[i]);
        }
    }
    found[2] = 0.0 + pairwise(scratch, n - 1);
    for (int64_t i = 0; i + 1 < n; i++)
        scratch[i] = (energy_mj[i + 1] - energy_mj[i]) / 1e3;
    double sum = 0.0;
    int64_t stands = -1;
    joules[0] = 0.0;
    for (int64_t i = 0; i + 1 < n; i++) {
        double step = scratch[i];
        sum = i ? sum + step : step;
        joules[i + 1] = sum;
        back += step < 0;
        if (step != 0) {
            stands = -1;
        } else {
            if (stands < 0)
                stands = i;
            double stood = at_s[i + 1] - at_s[stands];
            longest = stood > longest ? stood : longest;
        }
    }
    told[0] = bad, told[1] = dark, told[2] = late, told[3] = back, told[4] = fails;
    found[0] = longest, found[1] = most;
}

/* The most of the means over `apart` samples, at least 0; NaN where one of them is. */
double llem_most(int64_t n, const double *at_s, const double *joules, int64_t apart)
{
    double most = 0.0;
    int64_t unknown = 0;
    for (int64_t i = 0; i + apart < n; i++) {
        double mean = (joules[i + apart] - joules[i]) / (at_s[i + apart] - at_s[i]);
        unknown += mean != mean;
        most = mean > most ? mean : most;
    }
    return unknown ? NAN : most;
}

/* (n - 1) slopes of a line through points. */
void llem_slopes(int64_t n, const double *x, const double *y, double *slope)
{
    for (int64_t i = 0; i + 1 < n; i++)
        slope[i] = (y[i + 1] - y[i]) / (x[i + 1] - x[i]);
}

/* numpy's interp at moments that mostly rise, x in order, n >= 2. */
void llem_lookup(
    int64_t n, const double *x, const double *y, const double *slope, int64_t start_ns, int64_t m,
    const int64_t *t_ns, double *out)
{
    double moment[BLOCK];
    int64_t j = 0;
    for (int64_t first = 0; first < m; first += BLOCK) {
        int64_t here = m - first < BLOCK ? m - first : BLOCK;
        for (int64_t i = 0; i < here; i++)
            moment[i] = (double)(t_ns[first + i] - start_ns) / 1e9;
        for (int64_t i = 0; i < here; i++) {
            double at = moment[i], value;
            if (at >= x[n - 1]) {
                out[first + i] = y[n - 1];
                continue;
            }
            if (at < x[0]) {
                out[first + i] = y[0];
                continue;
            }
            int64_t tries = 0;
            if (at < x[j])
                j = 0, tries = 8;
            while (tries < 8 && x[j + 1] <= at)
                j++, tries++;
            if (x[j + 1] <= at) {
                int64_t low = j + 1, high = n - 1; /* x[low] <= at < x[high] */
                while (high - low > 1) {
                    int64_t middle = low + (high - low) / 2;
                    if (x[middle] <= at)
                        low = middle;
                    else
                        high = middle;
                }
                j = low;
            }
            value = slope[j] * (at - x[j]) + y[j];
            if (value != value) {
                value = slope[j] * (at - x[j + 1]) + y[j + 1];
                if (value != value && y[j] == y[j + 1])
                    value = y[j];
            }
            out[first + i] = at == x[j] ? y[j] : value;
        }
    }
}

/* The sum of later[i] - earlier[i]; `scratch` has n places. */
double llem_difference(int64_t n, const double *later, const double *earlier, double *scratch)
{
    for (int64_t i = 0; i < n; i++)
        scratch[i] = later[i] - earlier[i];
    return 0.0 + pairwise(scratch, n);
}

/* The slope of a least-squares line through y over x; NaN where a y is not finite. */
double llem_slope(int64_t n, const double *x, const double *y, double *scratch)
{
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad += !isfinite(y[i]);
    if (bad)
        return NAN;
    double mean = (0.0 + pairwise(x, n)) / (double)n;
    for (int64_t i = 0; i < n; i++)
        scratch[i] = (x[i] - mean) * y[i];
    double along = 0.0 + pairwise(scratch, n);
    for (int64_t i = 0; i < n; i++)
        scratch[i] = (x[i] - mean) * (x[i] - mean);
    return along / (0.0 + pairwise(scratch, n));
}

/* How long some waited from each moment to the other, ns, all together; told: how many of the waits
 * are shorter than `same_ns`, and how many are below 0. */
int64_t llem_waited(
    int64_t n, const int64_t *from_ns, const int64_t *to_ns, int64_t same_ns, int64_t *told)
{
    int64_t sum = 0, short_ = 0, late = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t wait = to_ns[i] - from_ns[i];
        sum += wait;
        short_ += wait < same_ns;
        late += from_ns[i] > to_ns[i];
    }
    told[0] = short_, told[1] = late;
    return sum;
}

/* numpy's bincounts of whole steps by equal parts of their time, `count` of them: how many steps,
 * joules and tokens. Whether all joules are finite; what is not gives up. */
int64_t llem_blocks(
    int64_t n, const double *joules, const double *tokens, const double *seconds, double total_s,
    int64_t count, int64_t *steps, double *block_j, double *block_t)
{
    double ended = 0.0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(joules[i]) || !isfinite(seconds[i]))
            return 0;
        ended = i ? ended + seconds[i] : seconds[i];
        double part = (ended - seconds[i] / 2) / total_s * (double)count;
        if (!(part > -1.0 && part < 9e15))
            return 0;
        int64_t block = (int64_t)part < count - 1 ? (int64_t)part : count - 1;
        steps[block]++;
        block_j[block] += joules[i];
        block_t[block] += tokens[i];
    }
    return 1;
}

/* How many readings of a counter at moments within [first_ns, last_ns] are off by more than
 * `least` from what was looked up. */
int64_t llem_doubtful(
    int64_t n, const int64_t *t_ns, const double *read_mj, const double *looked_up, double base_j,
    int64_t first_ns, int64_t last_ns, double least)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        double off = fabs(read_mj[i] / 1e3 - base_j - looked_up[i]);
        count += (off > least) & (off < INFINITY) & (t_ns[i] >= first_ns) & (t_ns[i] <= last_ns);
    }
    return count;
}

/* Where a temperature changes: the places of the first and last of each value in a row, and of
 * the ends. Their number; -1 where one is not finite. */
int64_t llem_changes(int64_t n, const float *value, int64_t *places)
{
    int64_t bad = 0, count = 0;
    for (int64_t i = 0; i < n; i++)
        bad += !isfinite(value[i]);
    if (bad)
        return -1;
    for (int64_t i = 0; i < n; i++) {
        places[count] = i;
        count += i == 0 || i == n - 1 || value[i] != value[i - 1] || value[i + 1] != value[i];
    }
    return count;
}

/* What a rank's steps say in passing. told: [0] step numbers that do not rise, [1] ends that go
 * back, [2] the first start, [3] the last end, [4] the sum of tokens. n >= 1. */
void llem_scan(
    int64_t n, const int64_t *step, const int64_t *t0_ns, const int64_t *t1_ns,
    const int64_t *tokens, int64_t *told)
{
    int64_t same = 0, late = 0, first = t0_ns[0], last = t1_ns[0];
    uint64_t sum = 0;
    for (int64_t i = 1; i < n; i++) {
        same += step[i] <= step[i - 1];
        late += t1_ns[i] < t1_ns[i - 1];
    }
    for (int64_t i = 0; i < n; i++) {
        first = t0_ns[i] < first ? t0_ns[i] : first;
        last = t1_ns[i] > last ? t1_ns[i] : last;
        sum += (uint64_t)tokens[i];
    }
    told[0] = same, told[1] = late, told[2] = first, told[3] = last, told[4] = (int64_t)sum;
}

/* The line of a rank's steps, whose ends are in order; `place` (in order) is the step that each of
 * `spans` spans comes before. starts, joules (n); begins: where stretches begin. Their number. */
int64_t llem_line(
    int64_t n, const int64_t *t0_ns, const int64_t *t1_ns, const double *e0_mj,
    const double *e1_mj, const uint8_t *phase, int64_t spans, const int64_t *place,
    const int64_t *span_t1_ns, const double *span_e1_mj, int64_t *starts, double *joules,
    int64_t *begins)
{
    int64_t count = 0;
    for (int64_t i = 1; i < n; i++) {
        starts[i] = t1_ns[i - 1];
        joules[i] = (e1_mj[i] - e1_mj[i - 1]) / 1e3;
    }
    starts[0] = t0_ns[0];
    joules[0] = (e1_mj[0] - e0_mj[0]) / 1e3;
    for (int64_t k = 0; k < spans; k++) {
        int64_t i = place[k];
        if (i >= n)
            continue;
        starts[i] = span_t1_ns[k];
        joules[i] = (e1_mj[i] - span_e1_mj[k]) / 1e3;
    }
    for (int64_t i = 0; i < n; i++)
        starts[i] = starts[i] < t1_ns[i] ? starts[i] : t1_ns[i];
    for (int64_t i = 0; i < n; i++)
        joules[i] = joules[i] < 0 ? NAN : joules[i];
    int64_t k = 0;
    for (int64_t i = 0; i < n; i++) {
        int after = 0;
        while (k < spans && place[k] <= i)
            after |= place[k++] == i;
        begins[count] = i;
        count += i == 0 || after || phase[i] != phase[i - 1];
    }
    return count;
}
