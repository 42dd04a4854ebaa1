"""What several commands do: rows, job, estimate, attempts, calibration, doctor."""
