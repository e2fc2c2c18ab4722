"""What runs inside a party's own Python: CrypTen's environment, without privtensors. Files here import torch and CrypTen only."""
