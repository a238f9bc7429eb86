"""Training what reinforcement starts from: reward models (TRL's RewardTrainer) and warm starts (TRL's SFTTrainer).

``rlkl reward-model RECIPE`` and ``rlkl sft RECIPE``; every key is in `reward_models.training.recipe`, and
``docs/reward_models.md`` describes the results.
"""
