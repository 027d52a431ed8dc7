"""Tests of a variance: is there any spatial variability?"""
