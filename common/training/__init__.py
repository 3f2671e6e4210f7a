"""What only train.py needs: settings, data, the loop, devices, processes, the optimiser."""
