"""Whether two answers are the same: 1/2 and 0.5, {1, 2} and {2, 1}, x > 3 and (3, oo), LaTeX or plain.

Nothing that a model writes is evaluated as Python: `tokens` and `grammar` read a small language of their own, bounded
in length, depth and the size of numbers, and sympy sees only what they built.

    with Comparer() as comparer:                                # from bounded
        comparer.verdict("\\frac{1}{2}", "0.5")                 # "equal"; else "unequal" or "undecided"
    final.answer("... so it is \\boxed{5 \\text{ cm}}.")         # what a solution comes to

Imports: nothing of this project.
Offers: final (the answer of a solution), tokens, units, grammar (text -> tree), rational (numbers without sympy),
same (two trees), verdict (two texts), symbolic (sympy's only owner), worker, bounded (in other processes, by time and
memory).
"""
