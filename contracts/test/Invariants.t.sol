// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {MemberRegistry} from "../src/MemberRegistry.sol";
import {RoundManager} from "../src/RoundManager.sol";
import {Federation} from "./Federation.sol";

/// Does what members, liars and time do, in any order; keeps what it saw finalized.
contract History is Federation {
    uint64 internal immutable TASK;
    bytes32[] public seen;
    /// A result passed that lacked a quorum or passed over a direct commitment.
    bool public unsound;
    uint256 private _fresh = 100;

    constructor() {
        found(7);
        TASK = openTask();
    }

    function rooms() external view returns (MemberRegistry, RoundManager, uint64) {
        return (registry, rounds, TASK);
    }

    function wait(uint8 elapsed) external {
        vm.warp(block.timestamp + elapsed);
    }

    function commit(uint8 who) external {
        call(committing(commitment(TASK, who % 7)));
    }

    function reveal(uint8 who) external {
        call(revealing(TASK, who % 7));
    }

    /// Any set of signers, verdicts that may pass over members, a signature that may be forged.
    function finalize(uint256 signers, uint256 missing, uint8 forged, bytes32 model) external {
        RoundManager.RoundResult memory r = result(TASK);
        if (r.round >= 3) return;
        r.model = model;
        r.included &= ~(missing & (missing >> 64) & (missing >> 128));
        signers = (signers | (signers >> 64)) & registry.epochAt(r.epoch).active;
        bytes32 digest = rounds.digestResult(r);
        bytes32[2][] memory signatures = signAll(digest, signers);
        bool sound = signatures.length >= registry.quorumOf(r.epoch);
        if (forged % 4 == 0 && signatures.length > 0) {
            signatures[forged % signatures.length] = sign(uint256(forged) + 1, digest);
            sound = false;
        }
        (,,,, uint256 direct) = rounds.roundState(TASK);
        if (direct & ~r.included != 0) sound = false;
        bool ok = call(abi.encodeCall(RoundManager.finalize, (r, signers, signatures, scoresOf(r.epoch))));
        if (ok && !sound) unsound = true;
        if (ok) seen.push(rounds.hashResult(r));
    }

    /// The last member leaves; somebody takes its seat.
    function replace() external {
        bool empty = registry.memberAt(6).role == MemberRegistry.Role.NONE;
        MemberRegistry.Member memory r = record(6);
        r.peerId = abi.encodePacked(_fresh++);
        govern(address(registry), change(6, empty ? r : nobody()));
    }

    function count() external view returns (uint256) {
        return seen.length;
    }

    function call(bytes memory data) private returns (bool ok) {
        (ok,) = address(rounds).call(data);
    }
}

contract InvariantsTest is Federation {
    History internal history;

    function setUp() public {
        history = new History();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(history);
    }

    function test_the_history_reaches_every_state() public {
        (MemberRegistry members, RoundManager manager, uint64 task) = history.rooms();
        history.finalize(type(uint256).max, 0, 1, "first");
        history.commit(5);
        history.reveal(5);
        history.replace();
        history.finalize(type(uint256).max, 0, 4, "forged");
        vm.assertEq(history.count(), 1);
        history.finalize(type(uint256).max, 0, 1, "second");
        history.replace();
        vm.assertEq(history.count(), 2);
        (, uint256 revealed) = manager.directOf(task, 1);
        vm.assertEq(revealed, 1 << 5);
        vm.assertEq(members.epoch(), 3);
    }

    function invariant_history() external view {
        (MemberRegistry members, RoundManager manager, uint64 task) = history.rooms();
        aFinalizedResultNeverChanges(manager, task);
        whoRevealedHasCommitted(manager, task);
        vm.assertFalse(history.unsound());
        vm.assertTrue(members.head().members >= 4);
    }

    function aFinalizedResultNeverChanges(RoundManager manager, uint64 task) private view {
        (uint64 open,,,,) = manager.roundState(task);
        vm.assertEq(open, history.count());
        for (uint64 round = 0; round < open; ++round) {
            vm.assertEq(manager.resultHash(task, round), history.seen(round));
        }
        vm.assertEq(manager.resultHash(task, open), bytes32(0));
    }

    function whoRevealedHasCommitted(RoundManager manager, uint64 task) private view {
        for (uint64 round = 0; round <= 3; ++round) {
            (uint256 committed, uint256 revealed) = manager.directOf(task, round);
            vm.assertEq(revealed & ~committed, 0);
        }
    }
}
