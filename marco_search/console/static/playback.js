// The slider and buttons that step through the rounds.

const STEP_MS = 700; // between rounds while playing; less where there are many
const LONGEST_MS = 20000; // of playing the whole search

export class Playback {
  // `onRound` gets the round to show.
  constructor(root, rounds, onRound) {
    this.slider = root.querySelector("#round");
    this.label = root.querySelector("#round-label");
    this.button = root.querySelector("[data-do=play]");
    this.onRound = onRound;
    this.timer = null;
    this.setRounds(rounds);
    this.slider.addEventListener("input", () => {
      this.stop();
      this.go(Number(this.slider.value));
    });
  }

  // While a search is running, a reader at its last round stays at its last round.
  setRounds(rounds) {
    const atEnd = this.rounds === undefined || this.round === this.rounds;
    this.rounds = rounds;
    this.slider.max = String(rounds);
    this.go(atEnd ? rounds : this.round);
  }

  go(round) {
    this.round = Math.max(0, Math.min(this.rounds, round));
    this.slider.value = String(this.round);
    this.label.textContent = `round ${this.round} of ${this.rounds}`;
    this.slider.setAttribute("aria-valuetext", this.label.textContent);
    this.onRound(this.round);
  }

  step(by) {
    this.stop();
    this.go(this.round + by);
  }

  toggle() {
    if (this.timer !== null) {
      this.stop();
      return;
    }
    if (this.round === this.rounds) this.go(0);
    this.button.textContent = "Pause";
    const pace = Math.min(STEP_MS, LONGEST_MS / Math.max(1, this.rounds));
    this.timer = setInterval(() => {
      this.go(this.round + 1);
      if (this.round === this.rounds) this.stop();
    }, pace);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }
}
