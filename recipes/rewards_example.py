"""A reward of your own.

rlkl train recipes/quickstart.yaml 'rewards=[{function: recipes/rewards_example.py:closeness}]'
"""


def closeness(completion: str, answer: str) -> float:
    """Score 1 for the right sum, a tenth less for each unit off, 0 for what is no number.

    ``completion`` is what the model wrote; ``answer`` is a column of the data.
    """
    if not completion.isdecimal():
        return 0.0
    return max(0.0, 1.0 - abs(int(completion) - int(answer)) / 10)
