"""Measurements that anybody can repeat: steps of every method and policy behind one function."""
