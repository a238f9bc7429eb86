def doubled(text):
    return 2.0 * len(text)
