"""Texts and pictures for people: tables, curves and lines on a terminal."""
