"""One right solution and its tests in each language: shown to models as the form to keep, and run to see what works."""

from __future__ import annotations

from llama31.synth.code.running.languages import LANGUAGES

_PAIRS = {
    "python": (
        '''def clamp(value: int, low: int, high: int) -> int:
    """The number of low..high that is nearest to value."""
    return max(low, min(value, high))
''',
        """from solution import clamp

assert clamp(5, 1, 3) == 3, clamp(5, 1, 3)
print("test-passed: above the range")
assert clamp(-2, 1, 3) == 1, clamp(-2, 1, 3)
print("test-passed: below the range")
print("all-tests-done")
""",
    ),
    "javascript": (
        """// The number of low..high that is nearest to value.
function clamp(value, low, high) {
  return Math.max(low, Math.min(value, high));
}

module.exports = { clamp };
""",
        """const assert = require('node:assert');
const { clamp } = require('./solution.js');

assert.strictEqual(clamp(5, 1, 3), 3);
console.log('test-passed: above the range');
assert.strictEqual(clamp(-2, 1, 3), 1);
console.log('test-passed: below the range');
console.log('all-tests-done');
""",
    ),
    "typescript": (
        """// The number of low..high that is nearest to value.
export function clamp(value: number, low: number, high: number): number {
  return Math.max(low, Math.min(value, high));
}
""",
        """import { clamp } from './solution';

function check(name: string, passed: boolean): void {
  if (!passed) throw new Error(name);
  console.log('test-passed: ' + name);
}

check('above the range', clamp(5, 1, 3) === 3);
check('below the range', clamp(-2, 1, 3) === 1);
console.log('all-tests-done');
""",
    ),
    "c": (
        """/* The number of low..high that is nearest to value. */
int clamp(int value, int low, int high) {
    return value < low ? low : value > high ? high : value;
}
""",
        """#include <stdio.h>
#include <stdlib.h>
#include "solution.c"

static void check(const char *name, int passed) {
    if (!passed) {
        fprintf(stderr, "failed: %s\\n", name);
        exit(1);
    }
    printf("test-passed: %s\\n", name);
}

int main(void) {
    check("above the range", clamp(5, 1, 3) == 3);
    check("below the range", clamp(-2, 1, 3) == 1);
    puts("all-tests-done");
    return 0;
}
""",
    ),
    "cpp": (
        """#include <algorithm>

// The number of low..high that is nearest to value.
int nearest(int value, int low, int high) {
    return std::max(low, std::min(value, high));
}
""",
        """#include <iostream>
#include <stdexcept>
#include <string>
#include "solution.cpp"

static void check(const std::string &name, bool passed) {
    if (!passed) throw std::runtime_error(name);
    std::cout << "test-passed: " << name << std::endl;
}

int main() {
    check("above the range", nearest(5, 1, 3) == 3);
    check("below the range", nearest(-2, 1, 3) == 1);
    std::cout << "all-tests-done" << std::endl;
}
""",
    ),
    "java": (
        """class Solution {
    /** The number of low..high that is nearest to value. */
    static int clamp(int value, int low, int high) {
        return Math.max(low, Math.min(value, high));
    }
}
""",
        """class Tests {
    static void check(String name, boolean passed) {
        if (!passed) throw new AssertionError(name);
        System.out.println("test-passed: " + name);
    }

    public static void main(String[] arguments) {
        check("above the range", Solution.clamp(5, 1, 3) == 3);
        check("below the range", Solution.clamp(-2, 1, 3) == 1);
        System.out.println("all-tests-done");
    }
}
""",
    ),
    "rust": (
        """/// The number of low..high that is nearest to value.
pub fn clamp(value: i64, low: i64, high: i64) -> i64 {
    value.max(low).min(high)
}
""",
        """mod solution;
use solution::clamp;

fn main() {
    assert_eq!(clamp(5, 1, 3), 3);
    println!("test-passed: above the range");
    assert_eq!(clamp(-2, 1, 3), 1);
    println!("test-passed: below the range");
    println!("all-tests-done");
}
""",
    ),
    "php": (
        """<?php

/** The number of low..high that is nearest to value. */
function clamp(int $value, int $low, int $high): int
{
    return max($low, min($value, $high));
}
""",
        """<?php

require __DIR__ . '/solution.php';

function check(string $name, bool $passed): void
{
    if (!$passed) {
        throw new Exception($name);
    }
    echo "test-passed: $name\\n";
}

check('above the range', clamp(5, 1, 3) === 3);
check('below the range', clamp(-2, 1, 3) === 1);
echo "all-tests-done\\n";
""",
    ),
    "sql": (
        """-- The number of low..high of each row of readings that is nearest to its value.
CREATE VIEW clamped AS
SELECT id, max(low, min(value, high)) AS value FROM readings;
""",
        """CREATE TABLE readings (id INTEGER PRIMARY KEY, value INTEGER, low INTEGER, high INTEGER);
INSERT INTO readings VALUES (1, 5, 1, 3), (2, -2, 1, 3);
.read solution.sql
SELECT iif((SELECT value FROM clamped WHERE id = 1) = 3, 'test-passed:', 'test-failed:') || ' above the range';
SELECT iif((SELECT value FROM clamped WHERE id = 2) = 1, 'test-passed:', 'test-failed:') || ' below the range';
SELECT 'all-tests-done';
""",
    ),
    "bash": (
        """# Prints the number of low..high that is nearest to value: clamp VALUE LOW HIGH
clamp() {
    local value=$1 low=$2 high=$3
    if ((value < low)); then
        echo "$low"
    elif ((value > high)); then
        echo "$high"
    else
        echo "$value"
    fi
}
""",
        """set -eu
source ./solution.sh

check() {
    if [ "$2" != "$3" ]; then
        echo "$1: $2 and not $3" >&2
        exit 1
    fi
    echo "test-passed: $1"
}

check "above the range" "$(clamp 5 1 3)" 3
check "below the range" "$(clamp -2 1 3)" 1
echo "all-tests-done"
""",
    ),
}


def specimen(language: str) -> dict[str, str]:
    """Solution and tests by file name."""
    one, (solution, tests) = LANGUAGES[language], _PAIRS[language]
    return {one.solution: solution, one.tests: tests}
