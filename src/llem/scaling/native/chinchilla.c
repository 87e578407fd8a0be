/* Huber sums of L(N, D) = E + A/N^alpha + B/D^beta and their exact derivatives, many fits at once.
 *
 * The same formulas as ChinchillaProblem._evaluate_numpy in chinchilla.py, which says what they
 * are. One fit after the other; the rows of a fit go through the lanes of the processor's vectors
 * (an extension of the language that gcc and clang share), a block at a time, so that what one
 * loop leaves for the next stays in the first level cache.
 *
 * Nothing here may be compiled with -ffast-math: fits far away rely on inf and NaN.
 */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / 8)
/* Rows of a block: seven arrays of them take 14 kB. */
#define BLOCK 256
#define VECTORS (BLOCK / LANES)

typedef double vec __attribute__((vector_size(BYTES)));
typedef int64_t mask __attribute__((vector_size(BYTES)));
typedef uint64_t bits __attribute__((vector_size(BYTES)));

/* ln 2 in two parts, the first of 32 bits: its products with exponents are exact. */
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define LOG2_E 0x1.71547652b82fep+0

/* Parameters, and entries of the upper triangle of a symmetric matrix of them. */
enum { E, A, B, ALPHA, BETA, DIMENSION };
enum { EE, EA, EB, EL, ET, AA, AB, AL, AT, BB, BL, BT, LL, LT, TT, TRIANGLE };

static inline vec all(double value)
{
    return value - (vec){0};
}

static inline vec load(const double *from)
{
    vec out;
    memcpy(&out, from, sizeof out);
    return out;
}

static inline vec choose(mask where, vec yes, vec no)
{
    return (vec)(((mask)yes & where) | ((mask)no & ~where));
}

/* exp: x = n ln 2 + r, |r| <= ln 2 / 2, and Taylor's series to r^13 (the rest is below 5e-18).
 * What would be subnormal is zero. */
static inline vec vexp(vec x)
{
    const vec shift = all(0x1.8p52); /* Adding it rounds to a whole number, kept in the low bits. */
    mask tiny = (mask)(x < -708.0);
    vec y = choose(tiny, all(-708.0), x);
    y = choose((mask)(y > 709.8), all(709.8), y);
    vec t = y * LOG2_E + shift;
    vec n = t - shift;
    vec r = y - n * LN2_HIGH;
    r = r - n * LN2_LOW;
    vec r2 = r * r, r4 = r2 * r2;
    vec p01 = 1.0 + r;
    vec p23 = 1.0 / 2 + r * (1.0 / 6);
    vec p45 = 1.0 / 24 + r * (1.0 / 120);
    vec p67 = 1.0 / 720 + r * (1.0 / 5040);
    vec p89 = 1.0 / 40320 + r * (1.0 / 362880);
    vec pab = 1.0 / 3628800 + r * (1.0 / 39916800);
    vec pcd = 1.0 / 479001600 + r * (1.0 / 6227020800.0);
    vec high = (p89 + r2 * pab) + r4 * pcd;
    vec p = p01 + r2 * (p23 + r2 * (p45 + r2 * p67) + r4 * r2 * high);
    /* 2^(n-1), since 2^1024 is no number. */
    vec scale = (vec)(((bits)t << 52) + ((uint64_t)1022 << 52));
    return choose(tiny, all(0.0), (p + p) * scale);
}

/* log of x >= 1: x = 2^k m with m in [sqrt(1/2), sqrt(2)), f = m - 1, t = f/(2 + f), and
 * log m = 2 atanh t = f - t (f - 2 t^2 (1/3 + t^2/5 + ...)); the rest of the series is below
 * 3e-17. */
static inline vec vlog(vec x)
{
    bits raw = (bits)x;
    bits k = (raw - (uint64_t)0x3fe6a09e667f3bcd) >> 52;
    vec f = (vec)(raw - (k << 52)) - 1.0;
    vec n = (vec)(k | (uint64_t)0x4330000000000000) - 0x1p52;
    vec t = f / (f + 2.0);
    vec u = t * t, u2 = u * u;
    vec p0 = 2.0 / 3 + u * (2.0 / 5);
    vec p1 = 2.0 / 7 + u * (2.0 / 9);
    vec p2 = 2.0 / 11 + u * (2.0 / 13);
    vec p3 = 2.0 / 15 + u * (2.0 / 17);
    vec series = p0 + u2 * (p1 + u2 * (p2 + u2 * (p3 + u2 * (2.0 / 19))));
    vec out = n * LN2_HIGH + ((f - t * (f - u * series)) + n * LN2_LOW);
    /* inf and NaN pass as they are. */
    return choose((mask)(x <= 0x1.fffffffffffffp1023), out, x);
}

/* What one loop leaves for the next: the gradient of log Lhat of each row, by parameter, and the
 * weights of its outer product in the Hessian and in the metric. */
struct block {
    vec slope[DIMENSION][VECTORS];
    vec hessian[VECTORS];
    vec metric[VECTORS];
};

/* Sums over rows: the value, then psi times weight times each share and its moments. */
struct sums {
    vec value, p1, p2, p3, p1x, p2y, p1xx, p2yy;
};

struct fit {
    vec e, a, b, alpha, beta, delta;
};

static inline void row(
    const struct fit *fit, vec x, vec y, vec z, vec weight,
    struct block *block, int at, struct sums *sums)
{
    vec u1 = vexp(fit->a - fit->alpha * x);
    vec u2 = vexp(fit->b - fit->beta * y);
    vec total = u1 + u2 + 1.0;
    vec r = z - (vlog(total) + fit->e);
    vec w3 = 1.0 / total;
    vec w1 = u1 * w3, w2 = u2 * w3;

    vec psi = choose((mask)(r > fit->delta), fit->delta, r);
    psi = choose((mask)(r < -fit->delta), -fit->delta, psi);
    mask inside = (mask)(psi == r);
    vec ratio = choose(inside, all(1.0), psi / r);
    vec psi_w = psi * weight;
    vec s1 = -w1 * x, s2 = -w2 * y;
    vec m1 = psi_w * w1, m2 = psi_w * w2;
    block->slope[E][at] = w3;
    block->slope[A][at] = w1;
    block->slope[B][at] = w2;
    block->slope[ALPHA][at] = s1;
    block->slope[BETA][at] = s2;
    block->metric[at] = weight * ratio;
    block->hessian[at] = psi_w + choose(inside, weight, all(0.0));

    vec m1x = m1 * x, m2y = m2 * y;
    sums->value += (r - 0.5 * psi) * psi_w;
    sums->p1 += m1;
    sums->p2 += m2;
    sums->p3 += psi_w * w3;
    sums->p1x += m1x;
    sums->p2y += m2y;
    sums->p1xx += m1x * x;
    sums->p2yy += m2y * y;
}

/* Add sum of weight x slope slope'. */
static inline void gram(
    const struct block *block, const vec *weight, int vectors, vec out[TRIANGLE])
{
    vec ee = out[EE], ea = out[EA], eb = out[EB], el = out[EL], et = out[ET];
    vec aa = out[AA], ab = out[AB], al = out[AL], at = out[AT];
    vec bb = out[BB], bl = out[BL], bt = out[BT];
    vec ll = out[LL], lt = out[LT], tt = out[TT];
    for (int i = 0; i < vectors; i++) {
        vec w = weight[i];
        vec e = block->slope[E][i], a = block->slope[A][i], b = block->slope[B][i];
        vec l = block->slope[ALPHA][i], t = block->slope[BETA][i];
        vec we = w * e, wa = w * a, wb = w * b, wl = w * l, wt = w * t;
        ee += we * e;
        ea += we * a;
        eb += we * b;
        el += we * l;
        et += we * t;
        aa += wa * a;
        ab += wa * b;
        al += wa * l;
        at += wa * t;
        bb += wb * b;
        bl += wb * l;
        bt += wb * t;
        ll += wl * l;
        lt += wl * t;
        tt += wt * t;
    }
    out[EE] = ee, out[EA] = ea, out[EB] = eb, out[EL] = el, out[ET] = et;
    out[AA] = aa, out[AB] = ab, out[AL] = al, out[AT] = at;
    out[BB] = bb, out[BL] = bl, out[BT] = bt;
    out[LL] = ll, out[LT] = lt, out[TT] = tt;
}

static inline double total(vec v)
{
    double sum = 0.0;
    for (int i = 0; i < LANES; i++)
        sum += v[i];
    return sum;
}

static void fill(const vec triangle[TRIANGLE], double *matrix)
{
    int entry = 0;
    for (int i = 0; i < DIMENSION; i++)
        for (int j = i; j < DIMENSION; j++) {
            double sum = total(triangle[entry++]);
            matrix[i * DIMENSION + j] = sum;
            matrix[j * DIMENSION + i] = sum;
        }
}

/* The last rows, fewer than a vector holds: the last one repeated, without weight. */
static void pad(double *to, const double *from, int64_t count, double rest)
{
    for (int i = 0; i < LANES; i++)
        to[i] = i < count ? from[i] : rest;
}

/* x, y, z (rows); theta (fits, 5); weight: `rows` numbers every `stride`, stride 0 where fits share
 * theirs; delta (fits). Out: value (fits), gradient (fits, 5), hessian and metric (fits, 5, 5). */
void llem_chinchilla(
    int64_t fits, int64_t rows, const double *x, const double *y, const double *z,
    const double *theta, const double *weight, int64_t stride, const double *delta,
    double *value, double *gradient, double *hessian, double *metric)
{
    struct block block;
    double xs[LANES] = {0}, ys[LANES] = {0}, zs[LANES] = {0}, ws[LANES];
    int64_t whole = rows - rows % LANES;
    if (whole < rows) {
        pad(xs, x + whole, rows - whole, x[rows - 1]);
        pad(ys, y + whole, rows - whole, y[rows - 1]);
        pad(zs, z + whole, rows - whole, z[rows - 1]);
    }
    for (int64_t k = 0; k < fits; k++) {
        const double *t = theta + k * DIMENSION, *w = weight + k * stride;
        struct fit fit = {
            all(t[E]), all(t[A] - t[E]), all(t[B] - t[E]), all(t[ALPHA]), all(t[BETA]),
            all(delta[k]),
        };
        struct sums sums = {0};
        vec h[TRIANGLE] = {0}, g[TRIANGLE] = {0};
        for (int64_t begin = 0; begin < rows; begin += BLOCK) {
            int vectors = 0;
            struct sums part = sums;
            for (int64_t i = begin; i < whole && i < begin + BLOCK; i += LANES)
                row(&fit, load(x + i), load(y + i), load(z + i), load(w + i), &block, vectors++,
                    &part);
            if (whole < rows && rows <= begin + BLOCK) {
                pad(ws, w + whole, rows - whole, 0.0);
                row(&fit, load(xs), load(ys), load(zs), load(ws), &block, vectors++, &part);
            }
            sums = part;
            gram(&block, block.hessian, vectors, h);
            gram(&block, block.metric, vectors, g);
        }
        double *grad = gradient + k * DIMENSION;
        double *hess = hessian + k * DIMENSION * DIMENSION;
        fill(g, metric + k * DIMENSION * DIMENSION);
        fill(h, hess);
        double p1 = total(sums.p1), p2 = total(sums.p2), p3 = total(sums.p3);
        double p1x = total(sums.p1x), p2y = total(sums.p2y);
        value[k] = total(sums.value);
        grad[E] = -p3;
        grad[A] = -p1;
        grad[B] = -p2;
        grad[ALPHA] = p1x;
        grad[BETA] = p2y;
        hess[E * DIMENSION + E] -= p3;
        hess[A * DIMENSION + A] -= p1;
        hess[B * DIMENSION + B] -= p2;
        hess[A * DIMENSION + ALPHA] += p1x;
        hess[ALPHA * DIMENSION + A] += p1x;
        hess[B * DIMENSION + BETA] += p2y;
        hess[BETA * DIMENSION + B] += p2y;
        hess[ALPHA * DIMENSION + ALPHA] -= total(sums.p1xx);
        hess[BETA * DIMENSION + BETA] -= total(sums.p2yy);
    }
}
