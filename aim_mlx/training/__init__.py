"""What every training run needs: schedules, and states that survive a kill."""
