"""Does the bundle compute what the reference computes?"""
