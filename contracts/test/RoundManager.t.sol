// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {MemberRegistry} from "../src/MemberRegistry.sol";
import {Quorum} from "../src/Quorum.sol";
import {RoundManager} from "../src/RoundManager.sol";
import {TaskBoard} from "../src/TaskBoard.sol";
import {Federation} from "./Federation.sol";

contract FinalizeTest is Federation {
    uint64 internal constant OPENED = 1_700_000_000;
    uint64 internal task;

    function setUp() public {
        found(7);
        vm.warp(OPENED);
        task = openTask();
    }

    function refusesResult(RoundManager.RoundResult memory r, bytes memory expected) internal {
        refuses(STRANGER, address(rounds), finalizing(r), expected);
    }

    function test_the_first_result_of_a_quorum_is_kept() public {
        RoundManager.RoundResult memory r = result(task);
        bytes memory call = finalizing(r);
        vm.expectEmit(address(rounds));
        emit RoundManager.RoundFinalized(task, 0, r, 0x1f, STRANGER);
        vm.expectEmit(address(rounds));
        emit RoundManager.Scores(task, 0, scoresOf(1));
        does(STRANGER, address(rounds), call);
        vm.assertEq(rounds.resultHash(task, 0), rounds.hashResult(r));
        (uint64 round, uint32 epoch, uint64 openedAt, bytes32 previous, uint256 direct) =
            rounds.roundState(task);
        vm.assertEq(round, 1);
        vm.assertEq(epoch, 1);
        vm.assertEq(openedAt, OPENED);
        vm.assertEq(previous, rounds.hashResult(r));
        vm.assertEq(direct, 0);
    }

    function test_results_form_a_chain_until_the_task_is_complete() public {
        bytes32 previous = terms().specification;
        for (uint64 round = 0; round < 3; ++round) {
            RoundManager.RoundResult memory r = result(task);
            vm.assertEq(r.round, round);
            vm.assertEq(r.previous, previous);
            does(STRANGER, address(rounds), finalizing(r));
            previous = rounds.resultHash(task, round);
        }
        (uint64 open,,,,) = rounds.roundState(task);
        vm.assertEq(open, 3);
        refusesResult(result(task), abi.encodeWithSelector(RoundManager.TaskComplete.selector, task, 3));
    }

    function test_fuzz_any_quorum_may_sign(uint8 chosen) public {
        uint256 signers = uint256(chosen) & 0x7f;
        uint256 count = 0;
        for (uint256 bits = signers; bits != 0; bits &= bits - 1) {
            ++count;
        }
        RoundManager.RoundResult memory r = result(task);
        if (count >= 5) {
            does(STRANGER, address(rounds), finalizing(r, signers));
        } else {
            refuses(
                STRANGER,
                address(rounds),
                finalizing(r, signers),
                abi.encodeWithSelector(Quorum.QuorumTooSmall.selector, count, 5)
            );
        }
    }

    function test_fuzz_after_the_windows_any_verdicts_on_members_pass(uint256 included, uint256 rejected)
        public
    {
        RoundManager.RoundResult memory r = result(task);
        r.included = included & 0x7f;
        r.rejected = rejected & 0x7f & ~included;
        vm.warp(OPENED + 90);
        does(STRANGER, address(rounds), finalizing(r));
    }

    function test_two_tasks_run_side_by_side() public {
        uint64 other = openTask();
        does(STRANGER, address(rounds), finalizing(result(task)));
        does(STRANGER, address(rounds), finalizing(result(task)));
        does(STRANGER, address(rounds), finalizing(result(other)));
        (uint64 round,,,,) = rounds.roundState(task);
        vm.assertEq(round, 2);
        (round,,,,) = rounds.roundState(other);
        vm.assertEq(round, 1);
    }

    function test_a_round_keeps_the_members_it_opened_with() public {
        govern(address(registry), change(6, nobody()));
        RoundManager.RoundResult memory r = result(task);
        vm.assertEq(r.epoch, 1);
        does(STRANGER, address(rounds), finalizing(r, 0x7c));
        r = result(task);
        vm.assertEq(r.epoch, 2);
        vm.assertEq(r.included, 0x3f);
        refuses(
            STRANGER,
            address(rounds),
            finalizing(r, 0x7c),
            abi.encodeWithSelector(Quorum.BadSignature.selector, 6)
        );
        does(STRANGER, address(rounds), finalizing(r, 0x3e));
    }

    function test_a_result_of_another_epoch_is_refused() public {
        govern(address(registry), change(7, record(7)));
        RoundManager.RoundResult memory r = result(task);
        r.epoch = 2;
        r.scoresDigest = keccak256(scoresOf(2));
        refusesResult(r, abi.encodeWithSelector(RoundManager.EpochMismatch.selector, 2, 1));
    }

    function test_auditors_and_empty_seats_have_no_verdict_and_no_signature() public {
        govern(address(registry), change(6, nobody()));
        govern(address(registry), change(7, auditor(7)));
        uint64 other = openTask();
        RoundManager.RoundResult memory r = result(other);
        vm.assertEq(r.included, 0x3f);
        vm.assertEq(scoresOf(r.epoch).length, 16);
        r.rejected = 0xc0;
        refusesResult(r, abi.encodeWithSelector(RoundManager.VerdictOnStranger.selector, 0xc0));
        r.rejected = 0;
        refuses(
            STRANGER,
            address(rounds),
            finalizing(r, 0x8f),
            abi.encodeWithSelector(Quorum.BadSignature.selector, 7)
        );
        does(STRANGER, address(rounds), finalizing(r));
    }

    function test_a_second_result_is_refused() public {
        RoundManager.RoundResult memory r = result(task);
        does(STRANGER, address(rounds), finalizing(r));
        bytes memory expected = abi.encodeWithSelector(RoundManager.RoundAlreadyFinalized.selector, task, 0);
        refusesResult(r, expected);
        r.model = keccak256("another");
        r.attempt = 1;
        refusesResult(r, expected);
    }

    function test_a_round_that_has_not_begun_is_refused() public {
        RoundManager.RoundResult memory r = result(task);
        r.round = 1;
        refusesResult(r, abi.encodeWithSelector(RoundManager.RoundNotOpen.selector, task, 1, 0));
    }

    function test_fuzz_a_result_follows_from_the_last_one(bytes32 previous) public {
        vm.assume(previous != terms().specification);
        RoundManager.RoundResult memory r = result(task);
        r.previous = previous;
        refusesResult(
            r, abi.encodeWithSelector(RoundManager.PreviousMismatch.selector, previous, terms().specification)
        );
    }

    function test_fuzz_nobody_is_both_included_and_rejected(uint256 rejected) public {
        RoundManager.RoundResult memory r = result(task);
        r.rejected = rejected;
        vm.assume(rejected & r.included != 0);
        refusesResult(
            r, abi.encodeWithSelector(RoundManager.OverlappingVerdicts.selector, rejected & r.included)
        );
    }

    function test_fuzz_verdicts_are_on_members_alone(uint256 strangers) public {
        strangers &= ~uint256(0x7f);
        vm.assume(strangers != 0);
        RoundManager.RoundResult memory r = result(task);
        r.included |= strangers;
        refusesResult(r, abi.encodeWithSelector(RoundManager.VerdictOnStranger.selector, strangers));
    }

    function test_fuzz_scores_are_those_that_were_signed(bytes calldata scores) public {
        RoundManager.RoundResult memory r = result(task);
        vm.assume(keccak256(scores) != r.scoresDigest);
        bytes32[2][] memory signatures = signAll(rounds.digestResult(r), 0x1f);
        bytes memory expected = scores.length == 14
            ? abi.encodeWithSelector(
                RoundManager.ScoresDigestMismatch.selector, keccak256(scores), r.scoresDigest
            )
            : abi.encodeWithSelector(RoundManager.ScoresLengthMismatch.selector, scores.length, 14);
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.finalize, (r, 0x1f, signatures, scores)),
            expected
        );
    }

    function test_scores_of_the_right_length_are_checked_too() public {
        RoundManager.RoundResult memory r = result(task);
        bytes memory scores = new bytes(14);
        bytes32[2][] memory signatures = signAll(rounds.digestResult(r), 0x1f);
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.finalize, (r, 0x1f, signatures, scores)),
            abi.encodeWithSelector(
                RoundManager.ScoresDigestMismatch.selector, keccak256(scores), r.scoresDigest
            )
        );
    }

    function test_fuzz_a_member_without_verdict_has_until_the_windows_close(uint8 missing, uint8 elapsed)
        public
    {
        RoundManager.RoundResult memory r = result(task);
        r.included &= ~(uint256(1) << (missing % 7));
        vm.warp(OPENED + elapsed);
        if (elapsed < 90) {
            refusesResult(r, abi.encodeWithSelector(RoundManager.TooEarly.selector, OPENED + 90));
            r.rejected = 1 << (missing % 7);
        }
        does(STRANGER, address(rounds), finalizing(r));
    }

    function test_the_windows_begin_anew_with_each_round() public {
        vm.warp(OPENED + 80);
        does(STRANGER, address(rounds), finalizing(result(task)));
        RoundManager.RoundResult memory r = result(task);
        r.included = 0x3f;
        vm.warp(OPENED + 80 + 89);
        refusesResult(r, abi.encodeWithSelector(RoundManager.TooEarly.selector, OPENED + 80 + 90));
        vm.warp(OPENED + 80 + 90);
        does(STRANGER, address(rounds), finalizing(r));
    }

    function test_a_signature_for_another_result_is_refused() public {
        RoundManager.RoundResult memory r = result(task);
        bytes32[2][] memory signatures = signAll(rounds.digestResult(r), 0x1f);
        r.attempt = 1;
        signatures[4] = sign(signerKey(4), rounds.digestResult(r));
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.finalize, (r, 0x1f, signatures, scoresOf(1))),
            abi.encodeWithSelector(Quorum.BadSignature.selector, 0)
        );
    }

    function test_fuzz_every_field_is_signed(uint8 field, uint256 flip) public {
        RoundManager.RoundResult memory r = result(task);
        bytes32 signed = rounds.digestResult(r);
        bytes memory fields = abi.encode(r);
        uint256 at = 32 * (uint256(field) % 12);
        uint256 width = at < 64 ? 64 : at < 128 ? 32 : 256;
        uint256 change_ = width == 256 ? flip : flip & ((1 << width) - 1);
        vm.assume(change_ != 0);
        assembly {
            let place := add(add(fields, 32), at)
            mstore(place, xor(mload(place), change_))
        }
        RoundManager.RoundResult memory changed = abi.decode(fields, (RoundManager.RoundResult));
        vm.assertFalse(rounds.digestResult(changed) == signed);
    }

    function test_owners_do_not_sign_rounds() public {
        RoundManager.RoundResult memory r = result(task);
        bytes32[2][] memory signatures = signAll(rounds.digestResult(r), 0x1f);
        signatures[2] = sign(10_002, rounds.digestResult(r));
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.finalize, (r, 0x1f, signatures, scoresOf(1))),
            abi.encodeWithSelector(Quorum.BadSignature.selector, 2)
        );
    }

    function test_a_signature_serves_one_contract() public {
        RoundManager other = new RoundManager(registry, board);
        RoundManager.RoundResult memory r = result(task);
        vm.assertEq(other.hashResult(r), rounds.hashResult(r));
        refuses(
            STRANGER, address(other), finalizing(r), abi.encodeWithSelector(Quorum.BadSignature.selector, 0)
        );
    }

    function test_an_unknown_task_has_no_rounds() public {
        RoundManager.RoundResult memory r = result(task);
        r.task = 9;
        bytes memory expected = abi.encodeWithSelector(TaskBoard.UnknownTask.selector, 9);
        refusesResult(r, expected);
        refuses(STRANGER, address(rounds), abi.encodeCall(RoundManager.roundState, (9)), expected);
    }

    function test_a_closed_task_refuses_everything() public {
        RoundManager.RoundResult memory r = result(task);
        RoundManager.Commitment memory c = commitment(task, 3);
        does(STRANGER, address(rounds), committing(commitment(task, 4)));
        govern(address(board), abi.encodeCall(TaskBoard.closeTask, (task)));
        bytes memory expected = abi.encodeWithSelector(TaskBoard.TaskNotOpen.selector, task);
        refusesResult(r, expected);
        refuses(STRANGER, address(rounds), committing(c), expected);
        refuses(STRANGER, address(rounds), revealing(task, 4), expected);
        (uint64 round,,,,) = rounds.roundState(task);
        vm.assertEq(round, 0);
    }

    function test_fuzz_a_score_is_proven_by_the_finalized_result(uint16[2] calldata scores) public {
        RoundManager.RoundResult memory r = result(task);
        bytes32 left = leaf(0, scores[0]);
        bytes32 right = leaf(1, scores[1]);
        r.scoresRoot = left < right ? keccak256(abi.encode(left, right)) : keccak256(abi.encode(right, left));
        does(STRANGER, address(rounds), finalizing(r));
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = right;
        vm.assertTrue(rounds.verifyScore(r, 0, scores[0], proof));
        vm.assertFalse(rounds.verifyScore(r, 2, scores[0], proof));
        vm.assertFalse(rounds.verifyScore(r, 0, scores[0] ^ 1, proof));
        r.scoresRoot = left;
        bytes memory expected = abi.encodeWithSelector(
            RoundManager.NotTheResult.selector, rounds.hashResult(r), rounds.resultHash(task, 0)
        );
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.verifyScore, (r, 0, scores[0], new bytes32[](0))),
            expected
        );
    }

    function leaf(uint16 index, uint16 score) internal view returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(task, uint64(0), index, score))));
    }

    function test_fuzz_digests_are_those_of_eip_712(
        RoundManager.RoundResult calldata r,
        RoundManager.Commitment calldata c
    ) public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256(
                    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                ),
                keccak256("Folkmoot"),
                keccak256("1"),
                block.chainid,
                address(rounds)
            )
        );
        bytes32 hash = keccak256(bytes.concat(rounds.RESULT_TYPEHASH(), abi.encode(r)));
        vm.assertEq(rounds.hashResult(r), hash);
        vm.assertEq(rounds.digestResult(r), keccak256(bytes.concat(hex"1901", domain, hash)));
        hash = keccak256(
            bytes.concat(
                abi.encode(rounds.COMMITMENT_TYPEHASH(), c.task, c.round, c.epoch, c.member),
                abi.encode(keccak256(bytes(c.cid)), c.keyHash, c.examples, keccak256(c.exponents))
            )
        );
        vm.assertEq(rounds.hashCommitment(c), hash);
        vm.assertEq(rounds.digestCommitment(c), keccak256(bytes.concat(hex"1901", domain, hash)));
    }
}

contract DirectTest is Federation {
    uint64 internal constant OPENED = 1_700_000_000;
    uint64 internal task;

    function setUp() public {
        found(7);
        vm.warp(OPENED);
        task = openTask();
    }

    function refusesCommitment(RoundManager.Commitment memory c, bytes memory expected) internal {
        refuses(STRANGER, address(rounds), committing(c), expected);
    }

    function test_a_censored_member_speaks_to_the_chain() public {
        RoundManager.Commitment memory c = commitment(task, 5);
        bytes32[2] memory signature = sign(signerKey(5), rounds.digestCommitment(c));
        vm.expectEmit(address(rounds));
        emit RoundManager.DirectCommitment(task, 0, 5, c, signature);
        does(STRANGER, address(rounds), committing(c));
        (,,,, uint256 direct) = rounds.roundState(task);
        vm.assertEq(direct, 1 << 5);
        (uint256 committed, uint256 revealed) = rounds.directOf(task, 0);
        vm.assertEq(committed, 1 << 5);
        vm.assertEq(revealed, 0);
    }

    function test_a_result_that_passes_over_it_is_refused() public {
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        does(STRANGER, address(rounds), committing(commitment(task, 6)));
        RoundManager.RoundResult memory r = result(task);
        vm.warp(OPENED + 1000);
        r.included = 0x1f;
        refuses(
            STRANGER,
            address(rounds),
            finalizing(r),
            abi.encodeWithSelector(RoundManager.CensoredCommitment.selector, 5)
        );
        r.rejected = 1 << 5;
        refuses(
            STRANGER,
            address(rounds),
            finalizing(r),
            abi.encodeWithSelector(RoundManager.CensoredCommitment.selector, 6)
        );
        r.included |= 1 << 6;
        does(STRANGER, address(rounds), finalizing(r));
    }

    function test_the_next_round_starts_without_direct_commitments() public {
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        does(STRANGER, address(rounds), finalizing(result(task)));
        (,,,, uint256 direct) = rounds.roundState(task);
        vm.assertEq(direct, 0);
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        (,,,, direct) = rounds.roundState(task);
        vm.assertEq(direct, 1 << 5);
    }

    function test_fuzz_every_member_may_commit_once(uint8 who, uint64 examples, bytes calldata exponents)
        public
    {
        RoundManager.Commitment memory c = commitment(task, who % 7);
        c.examples = examples;
        c.exponents = exponents;
        does(STRANGER, address(rounds), committing(c));
        c.examples = examples ^ 1;
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.AlreadyCommitted.selector, who % 7));
    }

    function test_fuzz_only_the_members_signer_commits_for_it(uint16 key) public {
        vm.assume(key != 0 && key != signerKey(5));
        refuses(
            signerOf(5),
            address(rounds),
            committing(commitment(task, 5), key),
            abi.encodeWithSelector(RoundManager.BadCommitmentSignature.selector, 5)
        );
    }

    function test_fuzz_the_commit_window_closes(uint8 elapsed) public {
        vm.warp(OPENED + elapsed);
        RoundManager.Commitment memory c = commitment(task, 5);
        if (elapsed < 60) {
            does(STRANGER, address(rounds), committing(c));
        } else {
            refusesCommitment(
                c, abi.encodeWithSelector(RoundManager.CommitWindowClosed.selector, OPENED + 60)
            );
        }
    }

    function test_fuzz_seats_without_a_member_do_not_commit(uint16 seat) public {
        vm.assume(seat > 6);
        RoundManager.Commitment memory c = commitment(task, seat);
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.NotAMemberSeat.selector, seat));
    }

    function test_an_auditor_does_not_commit() public {
        govern(address(registry), change(7, auditor(7)));
        RoundManager.Commitment memory c = commitment(openTask(), 7);
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.NotAMemberSeat.selector, 7));
    }

    function test_commitments_to_other_rounds_and_epochs_are_refused() public {
        RoundManager.Commitment memory c = commitment(task, 5);
        c.epoch = 2;
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.EpochMismatch.selector, 2, 1));
        c = commitment(task, 5);
        c.round = 1;
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.RoundNotOpen.selector, task, 1, 0));
        does(STRANGER, address(rounds), finalizing(result(task)));
        c.round = 0;
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.RoundAlreadyFinalized.selector, task, 0));
    }

    function test_a_complete_task_takes_no_commitment() public {
        for (uint256 k = 0; k < 3; ++k) {
            does(STRANGER, address(rounds), finalizing(result(task)));
        }
        bytes memory expected = abi.encodeWithSelector(RoundManager.TaskComplete.selector, task, 3);
        refusesCommitment(commitment(task, 5), expected);
        refuses(STRANGER, address(rounds), revealing(task, 5), expected);
    }

    function test_cids_and_exponents_are_bounded() public {
        RoundManager.Commitment memory c = commitment(task, 5);
        c.cid = "";
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.MalformedCid.selector, 0));
        c.cid = string(new bytes(129));
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.MalformedCid.selector, 129));
        c.cid = string(new bytes(128));
        c.exponents = new bytes(16_385);
        refusesCommitment(c, abi.encodeWithSelector(RoundManager.TooManyExponents.selector, 16_385));
        c.exponents = new bytes(16_384);
        does(STRANGER, address(rounds), committing(c));
    }

    function test_a_key_on_the_chain_opens_the_commitment() public {
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        bytes memory call = revealing(task, 5);
        vm.expectEmit(address(rounds));
        emit RoundManager.DirectReveal(task, 0, 5, keyOf(5));
        does(STRANGER, address(rounds), call);
        (, uint256 revealed) = rounds.directOf(task, 0);
        vm.assertEq(revealed, 1 << 5);
        refuses(
            STRANGER, address(rounds), call, abi.encodeWithSelector(RoundManager.AlreadyRevealed.selector, 5)
        );
    }

    function test_fuzz_only_the_committed_key_is_taken(bytes32 key) public {
        vm.assume(key != keyOf(5));
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.revealDirect, (task, 0, 5, key)),
            abi.encodeWithSelector(
                RoundManager.WrongKey.selector, 5, sha256(abi.encode(key)), sha256(abi.encode(keyOf(5)))
            )
        );
    }

    function test_fuzz_a_key_without_commitment_is_refused(uint16 member) public {
        vm.assume(member != 5);
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        refuses(
            STRANGER,
            address(rounds),
            revealing(task, member),
            abi.encodeWithSelector(RoundManager.NotCommitted.selector, member)
        );
    }

    function test_fuzz_the_reveal_window_closes(uint8 elapsed) public {
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        vm.warp(OPENED + elapsed);
        if (elapsed < 90) {
            does(STRANGER, address(rounds), revealing(task, 5));
        } else {
            refuses(
                STRANGER,
                address(rounds),
                revealing(task, 5),
                abi.encodeWithSelector(RoundManager.RevealWindowClosed.selector, OPENED + 90)
            );
        }
    }

    function test_keys_of_other_rounds_are_refused() public {
        does(STRANGER, address(rounds), committing(commitment(task, 5)));
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.revealDirect, (task, 1, 5, keyOf(5))),
            abi.encodeWithSelector(RoundManager.RoundNotOpen.selector, task, 1, 0)
        );
        does(STRANGER, address(rounds), finalizing(result(task)));
        refuses(
            STRANGER,
            address(rounds),
            abi.encodeCall(RoundManager.revealDirect, (task, 0, 5, keyOf(5))),
            abi.encodeWithSelector(RoundManager.RoundAlreadyFinalized.selector, task, 0)
        );
    }
}
