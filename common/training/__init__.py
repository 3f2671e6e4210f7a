"""What only train.py needs: settings, data, the loop, the device, several processes, the optimiser."""
