/* One pass over the columns of a record where numpy takes many. Every operation on floats is
 * numpy's own in numpy's own order, so that the bits are the same: see compiled.py, whose test
 * compares them, and the numpy code beside each call. No contraction to fused operations. */

#include <math.h>
#include <stdint.h>

#define LEAF 128 /* numpy's */

/* numpy's sum of a contiguous array. */
static double pairwise(const double *a, int64_t n)
{
    if (n < 8) {
        double sum = -0.0;
        for (int64_t i = 0; i < n; i++)
            sum += a[i];
        return sum;
    }
    if (n <= LEAF) {
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

double llem_sum(const double *a, int64_t n)
{
    return 0.0 + pairwise(a, n);
}

/* The same of (later[i] - earlier[i]) / 1e3, NaN for less than 0. */
static double pairwise_rises(const double *later, const double *earlier, int64_t n)
{
    if (n <= LEAF) {
        double rise[LEAF];
        for (int64_t i = 0; i < n; i++) {
            rise[i] = (later[i] - earlier[i]) / 1e3;
            rise[i] = rise[i] < 0 ? NAN : rise[i];
        }
        return pairwise(rise, n);
    }
    int64_t half = n / 2;
    half -= half % 8;
    double left = pairwise_rises(later, earlier, half);
    return left + pairwise_rises(later + half, earlier + half, n - half);
}

/* The most of the means over `apart` samples, at least 0; NaN where one of them is. */
double llem_most(int64_t n, const double *at_s, const double *joules, int64_t apart)
{
    double most = 0.0, wide[8] = {0.0};
    int64_t unknown = 0, i = 0;
    for (; i + 8 + apart <= n; i += 8)
        for (int k = 0; k < 8; k++) {
            double mean = (joules[i + k + apart] - joules[i + k])
                          / (at_s[i + k + apart] - at_s[i + k]);
            unknown += mean != mean;
            wide[k] = mean > wide[k] ? mean : wide[k];
        }
    for (; i + apart < n; i++) {
        double mean = (joules[i + apart] - joules[i]) / (at_s[i + apart] - at_s[i]);
        unknown += mean != mean;
        most = mean > most ? mean : most;
    }
    for (int k = 0; k < 8; k++)
        most = wide[k] > most ? wide[k] : most;
    return unknown ? NAN : most;
}

/* A line through n >= 2 points, to be looked up, with its n - 1 slopes. */
typedef struct {
    int64_t n;
    const double *x, *y;
    double *slope;
} Line;

void llem_slopes(const Line *line)
{
    const double *x = line->x, *y = line->y;
    for (int64_t i = 0; i + 1 < line->n; i++)
        line->slope[i] = (y[i + 1] - y[i]) / (x[i + 1] - x[i]);
}

/* numpy's interp at moments that mostly rise: each is looked for from `place` on, where the one
 * before was. */
static inline double look(const Line *line, double at, int64_t *place)
{
    int64_t n = line->n, j = *place, tries = 0;
    const double *x = line->x, *y = line->y;
    if (at >= x[n - 1])
        return y[n - 1];
    if (at < x[0])
        return y[0];
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
    *place = j;
    double value = line->slope[j] * (at - x[j]) + y[j];
    if (value != value) {
        value = line->slope[j] * (at - x[j + 1]) + y[j + 1];
        if (value != value && y[j] == y[j + 1])
            value = y[j];
    }
    return at == x[j] ? y[j] : value;
}

static void look_up(
    const Line *line, int64_t start_ns, int64_t count, const int64_t *t_ns, double *out,
    int64_t *place)
{
    int64_t n = line->n, at[LEAF], j = *place, disorder = 0, unknown = 0;
    const double *x = line->x, *y = line->y, *slope = line->slope;
    for (int64_t i = 0; i < count; i++)
        out[i] = (double)(t_ns[i] - start_ns) / 1e9;
    if (count < 1)
        return;
    for (int64_t i = 0; i + 1 < count; i++)
        disorder |= !(out[i] <= out[i + 1]);
    /* most moments rise, lie within the line and follow closely: a short way for these */
    if (!disorder && out[0] >= x[j] && out[count - 1] < x[n - 1]
        && out[count - 1] < x[j + 4 * LEAF < n ? j + 4 * LEAF : n - 1]) {
        for (int64_t i = 0; i < count; i++) {
            while (x[j + 1] <= out[i])
                j++;
            at[i] = j;
        }
        *place = j;
        double moment[LEAF];
        for (int64_t i = 0; i < count; i++)
            moment[i] = out[i];
        for (int64_t i = 0; i < count; i++) {
            out[i] = slope[at[i]] * (moment[i] - x[at[i]]) + y[at[i]];
            unknown |= out[i] != out[i];
        }
        if (!unknown)
            return;
        for (int64_t i = 0; i < count; i++)
            out[i] = moment[i];
        *place = at[0];
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = look(line, out[i], place);
}

/* What a line rises by from each moment to the next one; the first is left as it is. */
void llem_rises(
    const Line *line, int64_t start_ns, int64_t m, const int64_t *t_ns, double *rises)
{
    double known[LEAF + 1];
    int64_t place = 0;
    for (int64_t first = 0; first < m; first += LEAF) {
        int64_t here = m - first < LEAF ? m - first : LEAF;
        look_up(line, start_ns, here, t_ns + first, known + 1, &place);
        for (int64_t i = first ? 0 : 1; i < here; i++)
            rises[first + i] = known[i + 1] - known[i];
        known[0] = known[here];
    }
}

/* What the device of a line used while a rank waited from each of its steps' ends to the last
 * rank's; and `doubtful`, how many of the rank's readings of the counter (read_mj at from_ns, NULL:
 * none, of those within [first_ns, last_ns]) are off by more than `least` from the line. */
typedef struct {
    const Line *line;
    int64_t start_ns;
    const int64_t *from_ns, *to_ns; /* to_ns NULL: no wait, only readings */
    const double *read_mj;
    double base_j, least;
    int64_t first_ns, last_ns, doubtful, from_place, to_place;
} Waits;

static double waits(Waits *w, int64_t first, int64_t n)
{
    if (n <= LEAF) {
        double from[LEAF], to[LEAF];
        look_up(w->line, w->start_ns, n, w->from_ns + first, from, &w->from_place);
        if (w->read_mj) {
            int64_t count = 0;
            const double *read_mj = w->read_mj + first;
            const int64_t *t_ns = w->from_ns + first;
            for (int64_t i = 0; i < n; i++) {
                double off = fabs(read_mj[i] / 1e3 - w->base_j - from[i]);
                count += (off > w->least) & (off < INFINITY) & (t_ns[i] >= w->first_ns)
                         & (t_ns[i] <= w->last_ns);
            }
            w->doubtful += count;
        }
        if (!w->to_ns)
            return 0.0;
        look_up(w->line, w->start_ns, n, w->to_ns + first, to, &w->to_place);
        for (int64_t i = 0; i < n; i++)
            to[i] -= from[i];
        return pairwise(to, n);
    }
    int64_t half = n / 2;
    half -= half % 8;
    double left = waits(w, first, half);
    return left + waits(w, first + half, n - half);
}

double llem_waits(Waits *w, int64_t n)
{
    return 0.0 + waits(w, 0, n);
}

/* Stretches of steps by a counter's readings at the steps' ends: one begins with each of `changes`
 * steps (the first of all among them), where a phase begins, and after each of `spans` spans, which
 * come before the steps `place` and end with a reading of span_e1_mj; both in order. The counter
 * showed began_mj at first. Where stretches begin, their phases and energies, NaN where the counter
 * goes back, as numpy's add.reduceat has them; and their number. */
int64_t llem_stretches(
    int64_t n, const double *e1_mj, double began_mj, int64_t changes, const int64_t *change,
    const uint8_t *phase, int64_t spans, const int64_t *place, const double *span_e1_mj,
    int64_t *begins, uint8_t *phases, double *joules)
{
    int64_t count = 0, c = 0, k = 0;
    while (c < changes || (k < spans && place[k] < n)) {
        int64_t at = c < changes ? change[c] : n;
        double before = NAN;
        if (k < spans && place[k] <= at)
            at = place[k];
        if (c < changes && change[c] == at)
            c++;
        before = at ? e1_mj[at - 1] : began_mj;
        while (k < spans && place[k] == at)
            before = span_e1_mj[k++]; /* of several the last counts */
        double own = (e1_mj[at] - before) / 1e3;
        begins[count] = at;
        phases[count] = phase[c - 1];
        joules[count++] = own < 0 ? NAN : own;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t first = begins[i], end = i + 1 < count ? begins[i + 1] : n;
        if (end - first > 1)
            joules[i] += pairwise_rises(e1_mj + first + 1, e1_mj + first, end - first - 1);
    }
    return count;
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

/* numpy's median of n >= 1 values, which are put in another order; NaN where one is. */
double llem_median(int64_t n, double *a)
{
    for (int64_t i = 0; i < n; i++)
        if (a[i] != a[i])
            return NAN;
    int64_t middle = n / 2, low = 0, high = n - 1;
    while (low < high) { /* Hoare's selection */
        double pivot = a[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (pivot < a[j])
                j--;
            if (i <= j) {
                double swap = a[i];
                a[i++] = a[j], a[j--] = swap;
            }
        }
        if (middle <= j)
            high = j;
        else if (middle >= i)
            low = i;
        else
            break;
    }
    if (n % 2)
        return a[middle];
    double below = a[0];
    for (int64_t i = 1; i < middle; i++)
        below = a[i] > below ? a[i] : below;
    return (below + a[middle]) / 2;
}

/* The first of `count` windows, from since[k] to last[k], whose slope of y over x is below `least`
 * in both directions: its number; -1: none; -2 - k: that of window k cannot be told. `scratch` has
 * as many places as a window. */
int64_t llem_flat(
    int64_t count, const int64_t *since, const int64_t *last, const double *x, const double *y,
    double most, double times, double *scratch)
{
    for (int64_t k = 0; k < count; k++) {
        int64_t first = since[k];
        double slope = llem_slope(last[k] - first + 1, x + first, y + first, scratch);
        if (!isfinite(slope))
            return -2 - k;
        if (!(fabs(slope) * times >= most))
            return k;
    }
    return -1;
}
