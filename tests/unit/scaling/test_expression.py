"""Formulas: what is read, what is refused, and whether values and derivatives are exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem.errors import InputError
from llem.scaling.fitting.nonnegative import solve_normal
from llem.scaling.laws.expression import DATA, PARAMETER, Graph, Node, Op, evaluate, order, symbols
from llem.scaling.laws.parser import MAX_LENGTH, FormulaError, parse_formula
from llem.scaling.laws.program import Plan

VALUES = {"N": 3.0e8, "D": 7.0e9, "C": 2.0e19, "U": 1.0e9, "E": 1.7, "A": 420.0, "B": 1900.0}
VALUES |= {"alpha": 0.34, "beta": 0.29, "k": 2.5}


def value_of(text: str) -> float:
    formula = parse_formula(text)
    known = {s: np.asarray(math.log(VALUES[v])) for v, s in formula.variables.items()}
    known |= {s: np.asarray(VALUES[p]) for p, s in formula.parameters.items()}
    return float(evaluate([formula.loss], known)[0])


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("E + A/N^alpha + B/D^beta", "E + A/N**alpha + B/D**beta"),
        ("L(N, D) = E + A*N**-alpha", "E + A*N**-alpha"),
        ("L = E - A/N^alpha", "E - A/N**alpha"),
        ("N^0*E + -k^2 + 2^-k^2 + D", "E + -k**2 + 2**-k**2 + D"),
        ("E*(k - 3)^2 + N/N*D/N", "E*(k - 3)**2 + D/N"),
        ("E + (A/N^(alpha/beta) + B/D)^beta", "E + (A/N**(alpha/beta) + B/D)**beta"),
        ("E + sqrt(A*N)/D + exp(-k)*log(D/U)", "E + sqrt(A*N)/D + exp(-k)*log(D/U)"),
        ("min(A, N, k) + max(E, 1, B/D)", "min(A, N, k) + max(E, 1, B/D)"),
        ("k + C^0.1 where k = E*D_u; D_u = min(D, U)^.5", "E*min(D, U)**.5 + C**0.1"),
        ("E + A/N^alpha where alpha = .5", "E + A/N**.5"),
        ("log(exp(k)*N^2) + sqrt(k^2) + (N^alpha)^2/N^alpha", "k + 2*log(N) + k + N**alpha"),
        ("  E + 1e-3 * N ^ .2  ", "E + 1e-3*N**.2"),
    ],
)
def test_a_formula_has_the_value_that_python_gives(text: str, python: str) -> None:
    known = {"exp": math.exp, "log": math.log, "sqrt": math.sqrt, "min": min, "max": max}
    assert value_of(text) == pytest.approx(eval(python, known | VALUES), rel=1e-13)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("E + A/n^alpha", 6, "did you mean 'N'?"),
        ("E + B/d^beta", 6, "did you mean 'D'?"),
        ("E + ln(N)", 4, "did you mean 'log'?"),
        ("E + sqr(N)", 4, "did you mean 'sqrt'?"),
        ("E + A/N^^alpha", 8, "cannot be read"),
        ("E + A/N^alpha +", 15, "cannot be read"),
        ("", 0, "an expression is missing"),
        ("E + exp", 4, "needs an argument"),
        ("E + exp(N, D)", 4, "exp takes one argument"),
        ("E + min(N)", 4, "min takes two or more"),
        ("E + N.real", 4, "not part of a formula"),
        ("E + [N][0]", 4, "not part of a formula"),
        ("__import__('os').system('true')", 0, "not a function"),
        ("E + (lambda: N)()", 4, "not a function"),
        ("E + 'N'", 4, "not part of a formula"),
        ("E + True*N", 4, "is not a number"),
        ("E + N // 2", 4, "known: + - * / ^"),
        ("E + N/0", 4, "no finite value"),
        ("E + N*9^9^9^9", 8, "no finite value"),
        ("E + N*(0-2)^.5", 6, "no finite value"),
        ("N + D", 0, "no parameter"),
        ("E + A", 0, "none of the variables"),
        ("E + L*N", 4, "cannot depend on itself"),
        ("E + x/N where x = y*A; y = x", 14, "defined by itself"),
        ("E + A/N where x = 1", 14, "defined and never used"),
        ("E + x/N where x 1", 13, "expected NAME = EXPRESSION"),
        ("E + x/N where N = 1", 14, "has a meaning already"),
        ("E + A/N^alpha where alpah in [0, 1]", 20, "did you mean 'alpha'?"),
        ("E + A/N^alpha where alpha in [1, 0]", 20, "the lesser bound comes first"),
        ("E + A/(N + K) where log K in [0, 1]", 24, "bounds above 0"),
        ("E + A/" + "N*" * MAX_LENGTH + "N", MAX_LENGTH, "longer than"),
        ("E + A/N)", 7, "cannot be read"),
    ],
)
def test_what_is_no_formula_is_refused_with_its_position(
    text: str, position: int, says: str
) -> None:
    with pytest.raises(FormulaError) as caught:
        parse_formula(text)
    assert says in str(caught.value)
    assert (caught.value.position, caught.value.text) == (position, text)
    assert isinstance(caught.value, InputError)


def test_a_formula_that_is_nested_without_end_is_refused() -> None:
    for text in ("E + " + "(" * 500 + "N" + ")" * 500, "E + N*" + "-" * 1900 + "A"):
        with pytest.raises(FormulaError):
            parse_formula(text)


@settings(max_examples=120, deadline=None)
@given(st.text(alphabet="NDE+-*/^()., 1e0ax=;[]wheroinsqtlgp\n\"'\\#λ²", max_size=40))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    refused = None
    try:
        formula = parse_formula(text)
    except FormulaError as error:
        refused = error
    if refused is not None:
        assert 0 <= refused.position <= len(text)
        return
    assert formula.parameters
    known = {*formula.variables.values(), *formula.parameters.values()}
    assert symbols(formula.loss) <= known


def test_equal_expressions_are_one_node_and_like_terms_are_collected() -> None:
    graph = Graph()
    x, p = graph.symbol("x", DATA), graph.symbol("p", PARAMETER)
    assert graph.add(x, p) is graph.add(p, x)
    assert graph.linear([(x, 2.0), (p, 1.0), (x, -2.0)]) is p
    assert graph.mul(x, p, graph.raised(x, -1.0)) is p
    assert graph.mul(graph.exp(x), graph.exp(p)) is graph.exp(graph.add(x, p))
    assert graph.log(graph.exp(x)) is x
    assert graph.exp(graph.log(p)) is p
    assert graph.mul(graph.zero, x) is graph.zero
    assert graph.power(x, graph.zero) is graph.one
    # p x + 3 p is p (x + 3): the data are put together before they meet the parameter.
    both = graph.linear([(graph.mul(p, x), 1.0), (p, 3.0)])
    assert both is graph.mul(p, graph.linear([(x, 1.0)], 3.0))


def test_a_square_root_of_a_square_is_not_taken_for_the_number_itself() -> None:
    graph = Graph()
    p = graph.symbol("p", PARAMETER)
    root = graph.raised(graph.mul(p, p), 0.5)
    assert float(evaluate([root], {p: np.asarray(-3.0)})[0]) == 3.0
    log = graph.log(graph.mul(p, p))
    assert float(evaluate([log], {p: np.asarray(-3.0)})[0]) == pytest.approx(math.log(9.0))


def expressions(graph: Graph, leaves: list[Node]) -> st.SearchStrategy[Node]:
    """Random expressions that stay finite for symbols near one."""
    numbers = st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0]).map(graph.const)
    base = st.one_of(st.sampled_from(leaves), numbers)

    def above(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        positive = inner.map(lambda n: graph.add(graph.mul(n, n), graph.const(0.7)))
        return st.one_of(
            st.tuples(inner, inner).map(lambda t: graph.add(*t)),
            st.tuples(inner, inner).map(lambda t: graph.mul(*t)),
            st.tuples(inner, inner).map(lambda t: graph.minimum(*t)),
            st.tuples(inner, inner).map(lambda t: graph.maximum(*t)),
            st.tuples(inner, positive).map(lambda t: graph.mul(t[0], graph.raised(t[1], -1.0))),
            positive.map(graph.log),
            positive.map(lambda n: graph.raised(n, 0.5)),
            st.tuples(positive, inner).map(
                lambda t: graph.power(t[0], graph.mul(t[1], graph.raised(t[0], -1.0)))
            ),
        )

    return st.recursive(base, above, max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_derivatives_are_those_of_finite_differences_and_the_plan_those_of_the_graph(
    data: st.DataObject,
) -> None:
    graph = Graph()
    p, q = graph.symbol("p", PARAMETER), graph.symbol("q", PARAMETER)
    x = graph.symbol("x", DATA)
    node = data.draw(expressions(graph, [p, q, x]))
    outputs = [node, graph.derivative(node, p), graph.derivative(node, q)]
    outputs.append(graph.derivative(outputs[1], q))
    rng = np.random.default_rng(0)
    point = rng.uniform(0.6, 1.4, (2, 5, 1))
    column = rng.uniform(0.6, 1.4, 4)

    def at(nodes: list[Node], dp: float = 0.0, dq: float = 0.0) -> list[np.ndarray]:
        return evaluate(nodes, {p: point[0] + dp, q: point[1] + dq, x: column})

    exact = at(outputs)
    if not all(np.all(np.abs(v) < 1e4) for v in exact):
        return
    h = 1e-6
    # At a kink of min or max both slopes are right: skip points that a step carries across one.
    kinks = [n for n in order([node]) if n.op in (Op.MIN, Op.MAX)]
    for kink in kinks:
        a, b = at(list(kink.args))
        if np.any(np.abs(a - b) < 1e-3):
            return
    for found, low, high in (
        (exact[1], at([node], dp=-h), at([node], dp=h)),
        (exact[2], at([node], dq=-h), at([node], dq=h)),
        (exact[3], at([outputs[1]], dq=-h), at([outputs[1]], dq=h)),
    ):
        slope = (high[0] - low[0]) / (2 * h)
        np.testing.assert_allclose(*np.broadcast_arrays(found, slope), rtol=1e-5, atol=1e-4)
    plan = Plan(graph, tuple(outputs), (p, q))
    planned = plan.run(plan.bind({x: column}), list(point))
    for a, b in zip(planned, exact, strict=True):
        np.testing.assert_allclose(*np.broadcast_arrays(a, b), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(unknowns=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_non_negative_least_squares_of_any_small_size_is_exact(unknowns: int, seed: int) -> None:
    from scipy.optimize import nnls

    rng = np.random.default_rng(seed)
    design = rng.standard_normal((12, unknowns)) * np.exp(rng.uniform(-6, 6, unknowns))
    target = rng.standard_normal(12)
    found = solve_normal((design.T @ design)[None], (design.T @ target)[None])[0]
    _, least = nnls(design, target)
    assert np.all(found >= 0)
    assert np.linalg.norm(design @ found - target) == pytest.approx(least, rel=1e-9)


def test_non_negative_least_squares_of_many_unknowns_is_feasible() -> None:
    rng = np.random.default_rng(2)
    design, truth = rng.uniform(0, 1, (60, 9)), np.array([1.0, 0, 2, 0, 3, 0, 1, 0, 2])
    target = design @ truth
    found = solve_normal((design.T @ design)[None], (design.T @ target)[None])[0]
    np.testing.assert_allclose(found, truth, atol=1e-7)
