"""Ray-native batch inference, finetuning and serving of LLaDA-MedV.

Importing this loads neither torch nor ray.
"""

__version__ = "0.1.0"
