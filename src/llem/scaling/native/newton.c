/* The damped Newton steps of many small problems: the same formulas as newton_step in minimiser.py.
 */

#include <math.h>
#include <stdint.h>

/* Parameters of the largest problem; minimiser.py asks numpy beyond. */
#define LARGEST 16

/* L D L' of a symmetric matrix (d, d), in place: its lower triangle becomes L, its diagonal D.
 * Whether every pivot is positive by more than rounding leaves behind. */
static int factor(double *m, int d)
{
    for (int j = 0; j < d; j++) {
        double *row = m + j * d;
        double pivot = row[j], scale = fabs(pivot);
        double below[LARGEST];
        for (int i = 0; i < j; i++) {
            below[i] = row[i];
            row[i] *= m[i * d + i]; /* 1/D is kept where D would be. */
            pivot -= below[i] * row[i];
        }
        if (!(pivot > 1e-13 * scale) || !(pivot < INFINITY))
            return 0;
        row[j] = 1.0 / pivot;
        for (int i = j + 1; i < d; i++) {
            double sum = m[i * d + j];
            for (int l = 0; l < j; l++)
                sum -= m[i * d + l] * row[l];
            m[i * d + j] = sum;
        }
    }
    return 1;
}

/* gradient, fixed, move (k, d); hessian, metric (k, d, d); damping, promised, solved (k); cap (d).
 * fixed may be null: all are free. Where there is no step, solved is 0 and so are the others. */
void llem_newton(
    int64_t problems, int64_t dimension, const double *gradient, const double *hessian,
    const double *metric, const double *damping, const double *fixed, const double *cap,
    double *move, double *promised, uint8_t *solved)
{
    int d = (int)dimension;
    for (int64_t k = 0; k < problems; k++) {
        const double *g = gradient + k * d, *h = hessian + k * d * d, *s = metric + k * d * d;
        const double *held = fixed ? fixed + k * d : 0;
        double *step = move + k * d, m[LARGEST * LARGEST], largest = 0.0;
        for (int i = 0; i < d; i++)
            if (!(s[i * d + i] <= largest))
                largest = s[i * d + i];
        double least = 1e-14 * largest + 1e-300;
        for (int i = 0; i < d; i++) {
            for (int j = 0; j < i; j++)
                m[i * d + j] = h[i * d + j] + damping[k] * s[i * d + j];
            double own = s[i * d + i];
            m[i * d + i] = h[i * d + i] + damping[k] * (own + (1e-10 * own + least));
            step[i] = -g[i];
        }
        if (held)
            for (int i = 0; i < d; i++)
                if (held[i] != 0.0) {
                    for (int j = 0; j < i; j++)
                        m[i * d + j] = 0.0;
                    for (int j = i + 1; j < d; j++)
                        m[j * d + i] = 0.0;
                    m[i * d + i] = 1.0;
                    step[i] = 0.0;
                }
        solved[k] = (uint8_t)factor(m, d);
        promised[k] = 0.0;
        if (!solved[k]) {
            for (int i = 0; i < d; i++)
                step[i] = 0.0;
            continue;
        }
        for (int i = 0; i < d; i++)
            for (int j = 0; j < i; j++)
                step[i] -= m[i * d + j] * step[j];
        double longest = 0.0;
        for (int i = d - 1; i >= 0; i--) {
            step[i] *= m[i * d + i];
            for (int j = i + 1; j < d; j++)
                step[i] -= m[j * d + i] * step[j];
            double share = fabs(step[i]) / cap[i];
            longest = share > longest ? share : longest;
        }
        double shrink = longest > 1.0 ? 1.0 / longest : 1.0, decrease = 0.0;
        for (int i = 0; i < d; i++) {
            step[i] *= shrink;
            if (!(fabs(step[i]) < INFINITY))
                solved[k] = 0;
        }
        if (!solved[k]) {
            for (int i = 0; i < d; i++)
                step[i] = 0.0;
            continue;
        }
        /* A fixed parameter does not move, so it needs no mask here. */
        for (int i = 0; i < d; i++) {
            double curve = 0.0;
            for (int j = 0; j < d; j++)
                curve += h[i * d + j] * step[j];
            decrease -= step[i] * (g[i] + 0.5 * curve);
        }
        promised[k] = decrease;
    }
}
