#!/usr/bin/env python3
"""Adds up a JUnit file of ctest: the last line of the test suite.

A doctest program counts its own cases ("moec-test: ..."); any other test, and
a program that ended before it could count, is one.
"""
import re
import sys
import xml.etree.ElementTree as ET

COUNTS = re.compile(
    r"^moec-test: (\d+) passed, (\d+) failed, (\d+) skipped", re.M)


def main():
    passed = failed = skipped = 0
    reasons = []
    for case in ET.parse(sys.argv[1]).getroot().iter("testcase"):
        out = case.findtext("system-out") or ""
        status = case.get("status")
        m = COUNTS.search(out)
        reasons += [f"{case.get('name')}: {r}" for r in
                    re.findall(r"^skipped: (.*)", out, re.M)]
        if m:
            counts = [int(g) for g in m.groups()]
            # It counted no failure and failed: it crashed on its way out.
            if status == "fail" and counts[1] == 0:
                counts[1] = 1
            passed += counts[0]
            failed += counts[1]
            skipped += counts[2]
        elif status == "run":
            passed += 1
        elif status == "notrun" or status == "disabled":
            skipped += 1
        else:
            failed += 1
    for r in reasons:
        print("skipped:", r)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


sys.exit(main())
